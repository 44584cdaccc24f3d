"""Negatives of pre-training, one utterance at a time, in the loader worker: what each masked frame is to be told from.

Source: `_sample_negative_indices` of transformers, `sample_negatives` of fairseq. The random stream is the utterance's
own (`data/draw.py`).

Shapes: F frames of an utterance, M masked frames, K negatives of each.
"""

from collections.abc import Sequence

import numpy as np


def draw_negatives(num_masked: int, num_negatives: int, rng: np.random.Generator) -> np.ndarray:
    """For each of an utterance's masked frames, `num_negatives` of the others, uniformly and with repeats.

    Returns (M, K) int32: positions among the utterance's masked frames, never a frame's own.
    """
    negatives_MK = rng.integers(0, num_masked - 1, (num_masked, num_negatives), dtype=np.int32)
    return negatives_MK + (negatives_MK >= np.arange(num_masked, dtype=np.int32)[:, None])


def contrastive_indices(
    time_masks: Sequence[np.ndarray], num_frames: int, num_negatives: int, rngs: Sequence[np.random.Generator]
) -> tuple[np.ndarray, np.ndarray]:
    """The masked frames of a batch and their negatives, as indices that a device gathers without counting anything.

    An utterance with a single masked frame has nothing to tell it from, and takes no part.

    Args:
        time_masks: bool (F,) of each utterance.
        num_frames: F of the padded batch.
        num_negatives: of each masked frame.
        rngs: of each utterance.

    Returns:
        masked_M, int64: the masked frames in a batch of B x F frames that was flattened.
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
