"""Copy of a checkpoint to host memory from a busy GPU."""

from collections import OrderedDict

import pytest
import torch

from w2v_lightning.checkpoints import files
from w2v_lightning.checkpoints.writer import BackgroundCheckpointIO, on_host

pytestmark = pytest.mark.gpu


def test_the_copy_is_of_the_moment_whatever_the_gpu_does_before_and_after(tmp_path):
    weights = [torch.zeros(1 << 22, device="cuda") for _ in range(8)]
    weights.append(torch.zeros(1000, 1000, device="cuda").T)
    factor = torch.rand(4096, 4096, device="cuda")
    writer = BackgroundCheckpointIO()
    for step in range(1, 4):
        for weight in weights:
            factor = (factor @ factor).clamp(0, 1)  # the copy must wait for these kernels
            weight.add_(1 + 0 * factor[0, 0])
        state = OrderedDict((str(i), weight) for i, weight in enumerate(weights))
        checkpoint = {
            "state_dict": state,
            "optimizer": {"step": torch.tensor(step, device="cuda")},
            "global_step": step,
        }
        writer.save_checkpoint(checkpoint, tmp_path / f"{step}.ckpt")
        for weight in weights:
            weight.add_(0.25).sub_(0.25)
    writer.teardown()
    for step in range(1, 4):
        loaded = files.load(str(tmp_path / f"{step}.ckpt"))
        assert loaded["optimizer"]["step"] == step
        for weight in loaded["state_dict"].values():
            assert weight.device.type == "cpu"
            assert (weight == step).all()


def test_types_and_shapes_stay():
    tensors = [torch.ones(3, 2, dtype=dtype, device="cuda") for dtype in (torch.bfloat16, torch.float16, torch.int64)]
    copied = on_host({"tensors": tensors, "none": None})
    assert [(t.dtype, t.shape, t.device.type) for t in copied["tensors"]] == [
        (t.dtype, t.shape, "cpu") for t in tensors
    ]
