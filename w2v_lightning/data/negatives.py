"""Negatives of pre-training: distractors of each masked frame, drawn per utterance, in the loader worker.

Source: `_sample_negative_indices` of transformers, `sample_negatives` of fairseq. Each utterance has its own random
stream (`data/draw.py`).

Shapes: F frames of an utterance, M masked frames, K negatives of each.
"""

from collections.abc import Sequence

import numpy as np


def draw_negatives(num_masked: int, num_negatives: int, rng: np.random.Generator) -> np.ndarray:
    """Draw, for each masked frame of an utterance, `num_negatives` of its other masked frames, uniformly, with repeats.

    Returns (M, K) int32: positions among the utterance's masked frames, never that of the frame itself.
    """
    negatives_MK = rng.integers(0, num_masked - 1, (num_masked, num_negatives), dtype=np.int32)
    return negatives_MK + (negatives_MK >= np.arange(num_masked, dtype=np.int32)[:, None])


def contrastive_indices(
    time_masks: Sequence[np.ndarray], num_frames: int, num_negatives: int, rngs: Sequence[np.random.Generator]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the masked frames of a batch and their negatives as indices that a device can gather directly.

    An utterance with a single masked frame has no negatives, and is left out.

    Args:
        time_masks: time mask of each utterance, bool (F,).
        num_frames: F of the padded batch.
        num_negatives: number of negatives per masked frame.
        rngs: random stream of each utterance.

    Returns:
        masked_M, int64: positions of the masked frames in the flattened batch of B x F frames.
        negatives_MK, int32: positions in `masked_M`.
    """
    start = 0
    masked, negatives = [np.empty(0, np.int64)], [np.empty((0, num_negatives), np.int32)]
    for row, (time_mask_F, rng) in enumerate(zip(time_masks, rngs, strict=True)):
        frames = np.flatnonzero(time_mask_F)
        if len(frames) > 1:
            masked.append(row * num_frames + frames)
            negatives.append(start + draw_negatives(len(frames), num_negatives, rng))
            start += len(frames)
    return np.concatenate(masked), np.concatenate(negatives)
