"""`bench step` on a CUDA device, in a minute: `W2V_TEST_GPUS=0 pytest -n 0 -m gpu`."""

import json

import pytest
import torch
from tiny import TINY_CONFIG

from w2v_lightning.__main__ import main
from w2v_lightning.runtime import hardware

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def needs_cuda():
    assert torch.cuda.is_available(), "run with W2V_TEST_GPUS=0 on a machine with a GPU"


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "32-true"])
def test_all_sides_are_measured(tmp_path, precision):
    (tmp_path / "config.json").write_text(json.dumps({**TINY_CONFIG, "mask_feature_length": 16}))
    report = tmp_path / "step.json"
    options = ["--batch-seconds", "60", "--device-seconds", "30", "--steps", "2", "--repetitions", "2", "--in-fit"]
    model = ["--model", str(tmp_path / "config.json"), "--off", "compile", "--precision", precision]
    assert main(["bench", "step", *model, *options, "--json", str(report)]) == 0
    results = json.loads(report.read_text())
    assert [side["side"] for side in results["sides"]] == ["ours in fit", "ours", "hf"]
    assert results["failures"] == {}
    assert all(0.001 < side["peak_gib"] < 4 for side in results["sides"])
    assert results["agreement"]["holds"]


def test_matrix_products_are_measured_within_what_gpus_reach():
    assert 1e12 < hardware.matrix_flops_per_s("cuda", torch.float16) < 1e16
    assert hardware.device_name("cuda") == torch.cuda.get_device_name()
    assert {"cuda", "cudnn", "driver"} <= hardware.versions().keys()
