"""SpecAugment masks as fairseq draws them, one utterance at a time, in the loader worker.

Source: `compute_mask_indices` of fairseq (mask_type static, overlapping spans, no cross-row trimming). The
random stream is the utterance's own (`data/draw.py`).
"""

import numpy as np

from w2v_lightning.data.batch import SpecAugment


def draw_masks(
    spec: SpecAugment, num_frames: int, num_channels: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Time mask over `num_frames` (F,) and channel mask over `num_channels` (C,), bool, True where masked."""
    time_mask_F = span_mask(num_frames, spec.time_prob, spec.time_length, spec.time_min_spans, rng)
    channel_mask_C = span_mask(num_channels, spec.channel_prob, spec.channel_length, 0, rng)
    return time_mask_F, channel_mask_C


def span_mask(size: int, prob: float, length: int, min_spans: int, rng: np.random.Generator) -> np.ndarray:
    """`prob` x `size` / `length` spans (the fraction rounded up or down at random) of `length`, which may overlap.

    An input shorter than the span gets none, as masking all of it would leave nothing to learn from.
    """
    mask = np.zeros(size, dtype=bool)
    if prob <= 0 or size <= length:
        return mask
    num_spans = max(min_spans, int(prob * size / length + rng.random()))
    num_starts = size - length + 1
    starts = rng.choice(num_starts, min(num_spans, num_starts), replace=False)
    mask[(starts[:, None] + np.arange(length)).ravel()] = True
    return mask
