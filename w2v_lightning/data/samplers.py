"""Samplers: the slots of the plan that this rank processes, in order."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
from torch.utils.data import DistributedSampler

from w2v_lightning.data import plan


@dataclass(frozen=True)
class Slot:
    """Micro-batch of the plan: its utterances and place in the epoch. A worker receives nothing else."""

    positions: np.ndarray
    epoch: int = 0
    global_step: int = 0
    micro_batch: int = 0
    num_micro_batches: int = 1
    step: np.ndarray | None = None  # positions of the whole global step, over all ranks; None: `positions`
    is_filler: bool = False

    @property
    def step_positions(self) -> np.ndarray:
        """Positions of all utterances of the global step, over all ranks."""
        return self.positions if self.step is None else self.step


class TrainSampler(DistributedSampler):
    """Sampler of this rank's slots of the epoch's plan, in order.

    It is a DistributedSampler only because Lightning calls `set_epoch` on those, and does not wrap them again.
    """

    def __init__(
        self,
        durations_s_N: np.ndarray,
        *,
        batch_seconds: float,
        device_seconds: float,
        seed: int,
        rank: int,
        world_size: int,
        spread: float = plan.SPREAD,
        is_share: bool = False,
    ) -> None:
        self.durations_s_N = durations_s_N
        self.batch_seconds = batch_seconds
        self.spread = spread
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self._resumed = 0, 0
        self.num_steps = plan.num_steps(durations_s_N, batch_seconds, spread)
        self.num_micro_batches = plan.micro_batches_per_rank(
            durations_s_N, batch_seconds, world_size, device_seconds, spread, is_share
        )

    def resume(self, epoch: int, global_step: int) -> None:
        """Begin `epoch` at its `global_step`; every other epoch is whole."""
        self._resumed = epoch, global_step
        self.epoch = epoch  # loader workers receive their first slots before Lightning calls set_epoch

    def __len__(self) -> int:
        return self.num_steps * self.num_micro_batches

    def __iter__(self) -> Iterator[Slot]:
        # The epoch is read at the first `next`, because Lightning makes iterators before it calls set_epoch.
        yield from self.slots(self.epoch)

    def slots(self, epoch: int) -> Iterator[Slot]:
        """Yield this rank's slots of an epoch."""
        resumed_epoch, first_step = self._resumed
        steps = list(enumerate(plan.plan(self.durations_s_N, self.batch_seconds, self.seed, epoch, self.spread)))
        for global_step, step in steps[first_step if epoch == resumed_epoch else 0 :]:
            ranks = plan.split(self.durations_s_N, step, self.world_size, self.num_micro_batches)
            for micro_batch, positions in enumerate(ranks[self.rank]):
                place = epoch, global_step, micro_batch, self.num_micro_batches, step
                if len(positions):
                    yield Slot(positions, *place)
                else:  # a filler: every rank must compute every micro-batch, but this one is not counted
                    shortest = step[[self.durations_s_N[step].argmin()]]
                    yield Slot(shortest, *place, is_filler=True)


class EndlessSampler(DistributedSampler):
    """Sampler of the slots of a TrainSampler's epoch, the next one, and so on, for a loader that reads ahead."""

    def __init__(self, epochs: TrainSampler) -> None:
        self.epochs = epochs

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next iterator begins with."""
        self.epochs.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.epochs)

    def __iter__(self) -> Iterator[Slot]:
        for epoch in count(self.epochs.epoch):
            yield from self.epochs.slots(epoch)


class EvaluationSampler(DistributedSampler):
    """Sampler of this rank's share of all utterances, each exactly once; shares may differ by one batch."""

    def __init__(self, durations_s_N: np.ndarray, *, device_seconds: float, rank: int, world_size: int) -> None:
        batches = plan.evaluation_batches(durations_s_N, device_seconds, world_size)
        self.slots = [Slot(positions) for positions in batches[rank::world_size]]

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: evaluation is the same in every epoch."""

    def __len__(self) -> int:
        return len(self.slots)

    def __iter__(self) -> Iterator[Slot]:
        return iter(self.slots)
