"""Relative speed of GPUs by their specifications and kernels."""

import pytest

from w2v_lightning.catalog.instances import GPUS
from w2v_lightning.perf_model import specs


@pytest.mark.parametrize(
    ("device", "precision", "to", "to_precision", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16-mixed", "NVIDIA H200", "bf16-mixed", 1 / (0.95 + 0.05 * 4800 / 3350)),
        ("NVIDIA H200", "bf16-mixed", "H100", "bf16-mixed", 0.95 + 0.05 * 4800 / 3350),
        ("NVIDIA H200", "32-true", "NVIDIA H200", "bf16-mixed", 1 / (0.95 * 790 / 67 + 0.05 * 2)),
        ("T4", "16-mixed", "NVIDIA H200", "bf16-mixed", 1 / (0.95 * 790 / 24 + 0.05 * 4800 / 320)),
        ("L4", "bf16-mixed", "NVIDIA H200", "bf16-mixed", 1 / (0.95 * 790 / 59 + 0.05 * 4800 / 300)),
        ("A100", "bf16-mixed", "AMD EPYC, 1 thread", "32-true", None),
    ],
)
def test_speeds_are_compared_by_specification(device, precision, to, to_precision, expected):
    found = specs.speed_ratio(device, precision, to, to_precision)
    assert found == expected or found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("device", "precision", "to", "to_precision", "expected"),
    [
        ("Tesla T4", "16-mixed", "NVIDIA H200", "bf16-mixed", 0.8),
        ("V100", "16-mixed", "A10G", "16-mixed", 0.8),
        ("NVIDIA L4", "bf16-mixed", "Tesla T4", "16-mixed", 1.25),
        ("V100", "16-mixed", "T4", "16-mixed", 1),
        ("A100", "bf16-mixed", "NVIDIA H200", "16-mixed", 1),
        ("T4", "32-true", "NVIDIA H200", "32-true", 1),
    ],
)
def test_gpus_that_compute_in_other_ways_are_slower_than_their_specifications_say(
    device, precision, to, to_precision, expected
):
    assert specs.kernel_ratio(device, precision, to, to_precision) == expected


def test_every_gpu_of_the_catalog_has_rates():
    assert {gpu.names[0] for gpu in specs.GPUS} == set(GPUS)
    for gpu in specs.GPUS:
        assert gpu.tflop_per_s["fp32"] < gpu.tflop_per_s["fp16"]
        assert ("bf16" in gpu.tflop_per_s) == (GPUS[gpu.names[0]][1] >= (8, 0))
