"""Sums over readings of a simulated GPU."""

import pynvml
import pytest
import torch

from w2v_lightning.telemetry import gpu
from w2v_lightning.telemetry.gpu import GpuSampler, GpuUse, NvmlGpu, Reading, energy_between


class Readings:
    def __init__(self, *readings):
        self.read = iter(readings).__next__


def test_readings_are_summed_and_divided_once():
    readings = [
        Reading(0.0, 0.5, power_w=100, memory_gib=3.0, energy_j=1000),
        Reading(2.0, 1.0, power_w=900, memory_gib=7.0, energy_j=1800),
        Reading(3.0, 0.9, power_w=900, memory_gib=5.0, energy_j=2000),
    ]
    sampler = GpuSampler(Readings(*readings))
    for _ in readings:
        sampler.sample()
    use = sampler.take()
    assert use.mean_utilisation == pytest.approx(0.8)
    assert use.mean_power_w == pytest.approx(1000 / 3)  # from the energy counter, not from the power at the readings
    assert use.most_memory_gib == 7.0
    assert sampler.take() == GpuUse()
    assert (use + use).most_memory_gib == 7.0
    assert (use + use).energy_j == 2000


def test_energy_is_integrated_where_there_is_no_counter():
    assert energy_between(Reading(0, power_w=100), Reading(2, power_w=300)) == 400
    assert energy_between(Reading(0), Reading(2, power_w=300)) is None


def test_a_gpu_that_says_nothing_leaves_everything_open():
    sampler = GpuSampler(Readings(Reading(0), Reading(1)))
    sampler.sample()
    sampler.sample()
    assert sampler.take().mean_utilisation is None
    assert sampler.take().mean_power_w is None


def test_the_thread_reads_until_it_is_stopped(monkeypatch):
    monkeypatch.setattr(gpu, "SAMPLE_EVERY_S", 0.001)
    sampler = None

    class Once:
        def read(self):
            sampler.stop()
            return Reading(0, utilisation=0.25)

    sampler = GpuSampler(Once())
    sampler.start()
    sampler._thread.join(timeout=30)
    assert not sampler._thread.is_alive()
    assert sampler.take().mean_utilisation == 0.25


def test_without_a_gpu_or_nvml_there_is_no_sampler(monkeypatch):
    def fails():
        raise pynvml.NVMLError_LibraryNotFound

    assert GpuSampler.for_device(torch.device("cpu")) is None
    monkeypatch.setattr(pynvml, "nvmlInit", fails)
    assert GpuSampler.for_device(torch.device("cuda", 0)) is None


class Nvml:
    """Fake NVML that reports power and utilisation only: some GPUs, such as with MIG, report less."""

    def __init__(self, monkeypatch):
        for name in ("MemoryInfo", "TotalEnergyConsumption"):
            monkeypatch.setattr(pynvml, f"nvmlDeviceGet{name}", self.is_not_supported)
        monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda uuid: uuid)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetPowerUsage", lambda handle: 250_000)
        rates = type("Rates", (), {"gpu": 40, "memory": 3})
        monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", lambda handle: rates)
        properties = type("Properties", (), {"uuid": "12-34"})
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)

    def is_not_supported(self, handle):
        assert handle == "GPU-12-34"
        raise pynvml.NVMLError_NotSupported


def test_units_and_what_is_not_supported(monkeypatch):
    Nvml(monkeypatch)
    reading = NvmlGpu(torch.device("cuda", 0)).read()
    assert (reading.utilisation, reading.power_w, reading.memory_gib, reading.energy_j) == (0.4, 250, None, None)
