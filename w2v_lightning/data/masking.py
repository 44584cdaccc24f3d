"""SpecAugment masks, drawn as in fairseq, one utterance at a time, in the loader worker.

Source: `compute_mask_indices` of fairseq (mask_type static, overlapping spans, no cross-row trimming). Each utterance
has its own random stream (`data/draw.py`).
"""

import logging

import numpy as np

from w2v_lightning.data.batch import SpecAugment

log = logging.getLogger(__name__)


def warn_of_start_probability(option: str, prob: float, length: int) -> None:
    """Warn if `prob` looks like the start probability of the paper, 0.065, not the share of fairseq, 0.65 (length 10).

    Args:
        option: name of the option, for the message.
        prob: share of positions to mask, as in `SpecAugment`.
        length: length of a span.
    """
    if 0 < prob * length < 1:
        log.warning(
            "%s=%g would mask about %.1f %% of the positions. It looks like the probability, in the wav2vec 2.0 paper,"
            " that a span starts at a position. Here, as in fairseq, it is the share of positions to mask if spans (of"
            " length %d) never overlapped: start probability %g is %g here, and %g here is start probability %.2g.",
            *(option, prob, 100 * prob, length, prob, prob * length, prob, prob / length),
        )


def draw_masks(
    spec: SpecAugment, num_frames: int, num_channels: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a time mask over `num_frames` (F,) and a channel mask over `num_channels` (C,), bool, True if masked."""
    time_mask_F = span_mask(num_frames, spec.time_prob, spec.time_length, spec.time_min_spans, rng)
    channel_mask_C = span_mask(num_channels, spec.channel_prob, spec.channel_length, spec.channel_min_spans, rng)
    return time_mask_F, channel_mask_C


def span_mask(size: int, prob: float, length: int, min_spans: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `prob` x `size` / `length` spans of `length` (number rounded up or down at random), which may overlap.

    An input not longer than a span gets none: masking all of it would leave nothing to learn from.
    """
    mask = np.zeros(size, dtype=bool)
    if prob <= 0 or size <= length:
        return mask
    num_spans = max(min_spans, int(prob * size / length + rng.random()))
    num_starts = size - length + 1
    starts = rng.choice(num_starts, min(num_spans, num_starts), replace=False)
    mask[(starts[:, None] + np.arange(length)).ravel()] = True
    return mask
