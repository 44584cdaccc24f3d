"""The CTC loss, in float32 whatever the precision of the rest. B utterances, F frames, V tokens, U labels."""

import math

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
    """Negative log-likelihood of each utterance's labels, in nats; shape (B,), float32 (float64 where the logits are).

    Frames and labels beyond an utterance's own count play no part. An utterance that cannot be aligned (more labels
    than frames) gets loss and gradient zero and leaves the others alone.

    The log-softmax and the loss run outside autocast: in half precision they overflow. cuDNN's CTC is left out, which
    has had bugs with empty and with long label sequences (pytorch#53557, #21680).

    Args:
        num_frames_B: int64, on the CPU; so is `num_labels_B`.
        speed: whether our kernels compute it; auto: torch does where there are too many tokens or labels for them.
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
    """The gradient is computed with the loss: it is a thousandth of what it is computed from."""

    @staticmethod
    def forward(
        ctx, logits_BFV: Tensor, num_frames_B: Tensor, labels_BU: Tensor, num_labels_B: Tensor, blank_id: int
    ) -> Tensor:
        from w2v_lightning.model.ctc_kernels import ctc  # where there is Triton

        counts = (to_device(counts_B, logits_BFV.device) for counts_B in (num_frames_B, num_labels_B))
        log_probs_BFV = logits_BFV.log_softmax(dim=-1).contiguous()
        losses_B, gradient_BFV = ctc(log_probs_BFV, labels_BU, *counts, blank_id, ctx.needs_input_grad[0])
        ctx.save_for_backward(gradient_BFV)
        return losses_B.masked_fill(losses_B == math.inf, 0.0).to(logits_BFV.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient_B: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient_BFV,) = ctx.saved_tensors
        return gradient_BFV * gradient_B[:, None, None], None, None, None, None
