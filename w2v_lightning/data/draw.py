"""Random streams, seeded with (seed, epoch, utterance) or (seed, global step), never with a worker, rank or batch."""

import zlib
from enum import IntEnum

import numpy as np


class Draw(IntEnum):
    """Purpose of a draw; each has its own stream, so that enabling one does not change another."""

    MASKS = 0
    AUGMENTATION = 1
    NEGATIVES = 2
    LAYER_DROP = 3
    DROPOUT = 4


def utterance_rng(purpose: Draw, seed: int, epoch: int, utterance_id: str) -> np.random.Generator:
    """Return the random stream of one purpose, for one utterance in one epoch."""
    return np.random.Generator(np.random.PCG64([seed, epoch, zlib.crc32(utterance_id.encode()), purpose]))


def dropout_seed(seed: int, global_step: int, rank: int, micro_batch: int) -> int:
    """Return the seed of torch's generator for one micro-batch, so that a repeated micro-batch draws the same."""
    stream = np.random.SeedSequence([seed, global_step, rank, micro_batch, Draw.DROPOUT])
    return int(stream.generate_state(1, np.uint64)[0])


def draw_dropped_layers(seed: int, global_step: int, num_layers: int, prob: float) -> list[int]:
    """Draw the layers (0 .. `num_layers`-1) to skip in an optimiser step, each with probability `prob`."""
    rng = np.random.Generator(np.random.PCG64([seed, global_step, Draw.LAYER_DROP]))
    return np.flatnonzero(rng.random(num_layers) < prob).tolist()
