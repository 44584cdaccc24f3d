"""Which slots of the plan this rank works on, in order."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
from torch.utils.data import DistributedSampler

from w2v_lightning.data import plan


@dataclass(frozen=True)
class Slot:
    """One micro-batch of the plan: which utterances, and their place in the epoch. All that a worker is told."""

    positions: np.ndarray
    epoch: int = 0
    global_step: int = 0
    micro_batch: int = 0
    num_micro_batches: int = 1
    step: np.ndarray | None = None  # positions of the whole global step, over all ranks; None: these are all
    is_filler: bool = False

    @property
    def step_positions(self) -> np.ndarray:
        return self.positions if self.step is None else self.step


class TrainSampler(DistributedSampler):
    """This rank's slots of the epoch's plan, in order.

    A DistributedSampler in name, because Lightning calls `set_epoch` on one and leaves its ranks alone.
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
    ):
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
            durations_s_N, batch_seconds, world_size, device_seconds, spread
        )

    def resume(self, epoch: int, global_step: int) -> None:
        """Begin `epoch` at its `global_step`; every other epoch is whole."""
        self._resumed = epoch, global_step
        self.epoch = epoch  # loader workers are given their first slots before Lightning calls set_epoch

    def __len__(self) -> int:
        return self.num_steps * self.num_micro_batches

    def __iter__(self) -> Iterator[Slot]:
        # The epoch as it is at the first `next`: Lightning makes iterators before it calls set_epoch.
        yield from self.slots(self.epoch)

    def slots(self, epoch: int) -> Iterator[Slot]:
        """Those of any epoch."""
        resumed_epoch, first_step = self._resumed
        steps = list(enumerate(plan.plan(self.durations_s_N, self.batch_seconds, self.seed, epoch, self.spread)))
        for global_step, step in steps[first_step if epoch == resumed_epoch else 0 :]:
            ranks = plan.split(self.durations_s_N, step, self.world_size, self.num_micro_batches)
            for micro_batch, positions in enumerate(ranks[self.rank]):
                place = epoch, global_step, micro_batch, self.num_micro_batches, step
                if len(positions):
                    yield Slot(positions, *place)
                else:  # every rank must take part in every micro-batch: it computes, and does not count
                    shortest = step[[self.durations_s_N[step].argmin()]]
                    yield Slot(shortest, *place, is_filler=True)


class EndlessSampler(DistributedSampler):
    """The slots of a TrainSampler's epoch, then those of the next one, and so on: for a loader that reads ahead."""

    def __init__(self, epochs: TrainSampler):
        self.epochs = epochs

    def set_epoch(self, epoch: int) -> None:
        self.epochs.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.epochs)

    def __iter__(self) -> Iterator[Slot]:
        for epoch in count(self.epochs.epoch):
            yield from self.epochs.slots(epoch)


class EvaluationSampler(DistributedSampler):
    """This rank's share of all utterances, each exactly once over the ranks; shares may differ by one batch."""

    def __init__(self, durations_s_N: np.ndarray, *, device_seconds: float, rank: int, world_size: int):
        batches = plan.evaluation_batches(durations_s_N, device_seconds, world_size)
        self.slots = [Slot(positions) for positions in batches[rank::world_size]]

    def set_epoch(self, epoch: int) -> None:
        """Evaluation is the same in every epoch."""

    def __len__(self) -> int:
        return len(self.slots)

    def __iter__(self) -> Iterator[Slot]:
        return iter(self.slots)
