"""CTC loss, in float32 whatever the precision of the rest. B utterances, F frames, V tokens, U labels."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.profiler import record_function

from w2v_lightning.model.speed import Speed, to_device


def ctc_loss(
    logits_BFV: Tensor,
    num_frames_B: Tensor,
    labels_BU: Tensor,
    num_labels_B: Tensor,
    blank_id: int = 0,
    speed: Speed = Speed(),
) -> Tensor:
    """Return each utterance's negative log-likelihood in nats; shape (B,), float32 (float64 if the logits are float64).

    Frames and labels beyond an utterance's own count are ignored. An utterance that cannot be aligned (more labels than
    frames) has loss and gradient zero and does not affect the others.

    The log-softmax and the loss run outside autocast, because they overflow in half precision. cuDNN's CTC is disabled,
    because it had bugs with empty and with long label sequences (pytorch#53557, #21680).

    Args:
        logits_BFV: logits of the CTC head.
        num_frames_B: frames of each utterance; int64, on the CPU.
        labels_BU: token ids of each utterance, padded with anything.
        num_labels_B: labels of each utterance; int64, on the CPU.
        blank_id: token id of the CTC blank.
        speed: choice between our kernels and torch; auto uses torch where the kernels do not fit the sizes.
    """
    with (
        record_function("CTC"),
        torch.autocast(logits_BFV.device.type, enabled=False),
        torch.backends.cudnn.flags(enabled=False),
    ):
        full_BFV = logits_BFV if logits_BFV.dtype == torch.float64 else logits_BFV.float()
        if speed.fuses_ctc(full_BFV, labels_BU):
            return _Fused.apply(full_BFV, num_frames_B, labels_BU, num_labels_B, blank_id)
        log_probs_FBV = full_BFV.log_softmax(dim=-1).transpose(0, 1)
        return functional.ctc_loss(
            log_probs_FBV,
            labels_BU,
            num_frames_B,
            num_labels_B,
            blank=blank_id,
            reduction="none",
            zero_infinity=True,
        )


class _Fused(torch.autograd.Function):
    """CTC by our kernels. The gradient is computed with the loss: it is a thousandth of the size of its inputs."""

    @staticmethod
    def forward(
        ctx: Any, logits_BFV: Tensor, num_frames_B: Tensor, labels_BU: Tensor, num_labels_B: Tensor, blank_id: int
    ) -> Tensor:
        from w2v_lightning.model.ctc_kernels import ctc  # needs Triton

        num_frames_B = to_device(num_frames_B, logits_BFV.device)
        num_labels_B = to_device(num_labels_B, logits_BFV.device)
        log_probs_BFV = logits_BFV.log_softmax(dim=-1).contiguous()
        losses_B, gradient_BFV = ctc(
            log_probs_BFV, labels_BU, num_frames_B, num_labels_B, blank_id, ctx.needs_input_grad[0]
        )
        ctx.save_for_backward(gradient_BFV)
        return losses_B.masked_fill(losses_B == math.inf, 0.0).to(logits_BFV.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_B: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient_BFV,) = ctx.saved_tensors
        return gradient_BFV * gradient_B[:, None, None], None, None, None, None
