"""Random draws belong to what they are drawn for: (seed, epoch, utterance) or (seed, global step), never to a worker, a
rank or a batch."""

import zlib
from enum import IntEnum

import numpy as np


class Draw(IntEnum):
    """What is drawn; each has a stream of its own, so that one does not shift when another is switched on."""

    MASKS = 0
    AUGMENTATION = 1
    NEGATIVES = 2
    LAYER_DROP = 3
    DROPOUT = 4


def utterance_rng(what: Draw, seed: int, epoch: int, utterance_id: str) -> np.random.Generator:
    """The random stream of `what` that belongs to one utterance in one epoch."""
    return np.random.Generator(np.random.PCG64([seed, epoch, zlib.crc32(utterance_id.encode()), what]))


def dropout_seed(seed: int, global_step: int, rank: int, micro_batch: int) -> int:
    """What torch's generator is set to for one micro-batch: done again after an interruption, it draws the same."""
    stream = np.random.SeedSequence([seed, global_step, rank, micro_batch, Draw.DROPOUT])
    return int(stream.generate_state(1, np.uint64)[0])


def draw_dropped_layers(seed: int, global_step: int, num_layers: int, prob: float) -> list[int]:
    """Which of the layers 0 .. `num_layers`-1 are skipped in an optimiser step, each with probability `prob`."""
    rng = np.random.Generator(np.random.PCG64([seed, global_step, Draw.LAYER_DROP]))
    return np.flatnonzero(rng.random(num_layers) < prob).tolist()
