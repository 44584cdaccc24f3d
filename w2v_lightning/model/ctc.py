"""The CTC loss, in float32 whatever the precision of the rest. B utterances, F frames, V tokens, U labels."""

import torch
from torch import Tensor
from torch.nn import functional
from torch.profiler import record_function


def ctc_loss(
    logits_BFV: Tensor, num_frames_B: Tensor, labels_BU: Tensor, num_labels_B: Tensor, blank_id: int = 0
) -> Tensor:
    """Negative log-likelihood of each utterance's labels, in nats; shape (B,), float32 (float64 where the logits are).

    Frames and labels beyond an utterance's own count play no part. An utterance that cannot be aligned (more labels
    than frames) gets loss and gradient zero and leaves the others alone.

    The log-softmax and the loss run outside autocast: in half precision they overflow. cuDNN's CTC is left out, which
    has had bugs with empty and with long label sequences (pytorch#53557, #21680).
    """
    with (
        record_function("CTC"),
        torch.autocast(logits_BFV.device.type, enabled=False),
        torch.backends.cudnn.flags(enabled=False),
    ):
        full_BFV = logits_BFV if logits_BFV.dtype == torch.float64 else logits_BFV.float()
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
