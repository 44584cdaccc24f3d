import pytest
import torch

from w2v_lightning import __version__
from w2v_lightning.runtime import hardware


def test_what_computed_is_named():
    versions = hardware.versions()
    assert versions["torch"] == torch.__version__
    assert versions["w2v_lightning"] == __version__
    assert all(isinstance(value, str) and value != "None" for value in versions.values())
    assert {"python", "lightning", "transformers"} <= versions.keys()
    assert len(hardware.device_name("cpu")) > 2


def test_the_rate_is_that_of_the_median_product(monkeypatch):
    times_s = iter([9.0, 0.04, 0.09, 0.04])  # the first is the warm-up
    monkeypatch.setattr(hardware, "_elapsed_s", lambda function, device: next(times_s))
    assert hardware.matrix_flops_per_s("cpu", torch.float32) == pytest.approx(2 * 512**3 / 0.04)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_processor_is_measured_in_plausible_units(dtype):
    assert 1e8 < hardware.matrix_flops_per_s("cpu", dtype) < 1e14
