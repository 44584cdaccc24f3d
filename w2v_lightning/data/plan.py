"""What an epoch trains on, decided from durations alone: two pure functions that never touch audio.

    plan(durations, batch_seconds, seed, epoch)              -> global step 0, 1, 2 ...: a set of utterances each
    split(durations, step, world_size, num_micro_batches)    -> world_size x num_micro_batches sets, alike by rank

`batch_seconds` belongs to the experiment: how much audio one optimiser step sees, padding counted. `device_seconds` and
the world size belong to the machine, and change only how a step is cut up. So the steps of an epoch, their number and
their order are the same on any machine, and the position in an epoch is one integer.

The padded cost of a set of utterances is (number of utterances) x (longest duration): what a device computes on.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator

import numpy as np

from w2v_lightning.errors import InputError

# Raised with every change of the rules below: a run whose steps were others cannot go on within its epoch.
VERSION = 2

# A pool is a stretch of the sorted durations whose utterances are shuffled among each other to make steps. Longest over
# shortest within a pool (the spread) bounds the padding; but however sparse the durations, a pool is at least two
# steps, or the same utterances would meet in every epoch. It ends where its last step is full, so that all steps of an
# epoch hold about as much audio, close to what `batch_seconds` allows.
SPREAD = 1.05
MIN_STEPS_PER_POOL = 2

# Utterances per step, where there are enough of them, are a multiple that any usual number of devices divides: with 7
# utterances on one device and 8 on the next, the first would wait for an eighth of the time.
MULTIPLES = (48, 32, 24, 16, 12, 8, 6, 4, 3, 2, 1)
LEAST_FILL = 0.9  # of what batch_seconds allows


def plan(
    durations_s_N: np.ndarray, batch_seconds: float, seed: int, epoch: int, spread: float = SPREAD
) -> list[np.ndarray]:
    """The global steps of an epoch, each an array of positions into `durations_s_N`; every utterance exactly once.

    Steps are made of utterances of similar duration, drawn anew each epoch, in a new order each epoch. The padded cost
    of a step is at most `batch_seconds` (one utterance longer than that is a step of its own), and the number of steps
    is the same in every epoch.

    Args:
        durations_s_N: seconds of each utterance.
        batch_seconds: padded cost of a step at the most.
        seed, epoch: what the random draw belongs to.
        spread: longest over shortest utterance of a step, where the corpus is large enough for it. More mixes durations
            better within a step and costs padding.
    """
    rng = np.random.Generator(np.random.PCG64([seed, epoch]))
    steps = []
    for pool in _pools(durations_s_N, batch_seconds, spread):
        sizes = _step_sizes(durations_s_N[pool], batch_seconds)
        steps += np.split(rng.permutation(pool), np.cumsum(sizes)[:-1])
    return [steps[i] for i in rng.permutation(len(steps))]


def num_steps(durations_s_N: np.ndarray, batch_seconds: float, spread: float = SPREAD) -> int:
    """Global steps of every epoch."""
    pools = _pools(durations_s_N, batch_seconds, spread)
    return sum(len(_step_sizes(durations_s_N[pool], batch_seconds)) for pool in pools)


def _pools(durations_s_N: np.ndarray, batch_seconds: float, spread: float) -> Iterator[np.ndarray]:
    """Positions in order of duration, cut where the spread is reached; each pool but the last fills its steps."""
    order_N = np.argsort(durations_s_N, kind="stable")
    sorted_s_N = durations_s_N[order_N]
    start = 0
    while start < len(order_N):
        end = _end_of_pool(sorted_s_N, start, batch_seconds, spread)
        if len(order_N) - end < _full_step(sorted_s_N[-1], batch_seconds):
            end = len(order_N)  # what is left would be one step at most, perhaps of a single utterance
        yield order_N[start:end]
        start = end


def _end_of_pool(sorted_s_N: np.ndarray, start: int, batch_seconds: float, spread: float) -> int:
    """As many full steps as there are within the spread, and no fewer than a pool has to have; or all that is left."""
    longest_s = sorted_s_N[start] * spread
    shorter_s = batch_seconds / (int(batch_seconds / longest_s) + 1)  # of which one more is a step
    longest_s = shorter_s if shorter_s > sorted_s_N[start] else longest_s
    end = int(np.searchsorted(sorted_s_N, longest_s, side="right"))
    num_steps = max(MIN_STEPS_PER_POOL, (end - start) // _full_step(sorted_s_N[end - 1], batch_seconds))

    def number_too_many(end: int) -> int:  # which grows with it, as longer utterances make smaller steps
        return end - start - num_steps * _full_step(sorted_s_N[end - 1], batch_seconds)

    return start + bisect_right(range(start + 1, len(sorted_s_N) + 1), 0, key=number_too_many)


def _full_step(longest_s: float, batch_seconds: float) -> int:
    """Utterances of a step of a large pool."""
    return next(_full_steps(longest_s, batch_seconds))[0]


def _full_steps(longest_s: float, batch_seconds: float) -> Iterator[tuple[int, int]]:
    """Utterances that fill a step, and what they are a multiple of; what most numbers of devices divide comes first."""
    most = max(1, int(batch_seconds / longest_s))
    for multiple in MULTIPLES:
        largest = most // multiple * multiple
        if largest >= LEAST_FILL * most:
            yield largest, multiple


def _step_sizes(pool_s: np.ndarray, batch_seconds: float) -> list[int]:
    """Utterances of each step of a pool: about equal, and within `batch_seconds` however the pool is shuffled."""
    for largest, multiple in _full_steps(pool_s.max(), batch_seconds):
        num_steps = math.ceil(len(pool_s) / largest)
        blocks, rest = divmod(len(pool_s), multiple)
        least, more = divmod(blocks, num_steps)
        if least >= 2 or multiple == 1:  # else the steps would be too unequal
            break
    sizes = [(least + (step < more)) * multiple for step in range(num_steps)]
    sizes[-1] += rest
    return sizes


def split(
    durations_s_N: np.ndarray, step: np.ndarray, world_size: int, num_micro_batches: int
) -> list[list[np.ndarray]]:
    """Cut one global step for a machine: `split(...)[rank][micro_batch]` are positions into `durations_s_N`.

    Of the step sorted by duration, each run of neighbours makes one micro-batch on every rank, dealt to them one by
    one: so it is as large and as long on all ranks, and none waits for another. Micro-batches differ by one utterance
    at most, those of shorter ones having more. A step of fewer utterances than that leaves some of the first ones
    empty.
    """
    by_duration = step[np.argsort(durations_s_N[step], kind="stable")]
    pieces = np.array_split(by_duration, world_size * num_micro_batches)
    runs = [np.concatenate(pieces[i : i + world_size]) for i in range(0, len(pieces), world_size)][::-1]
    return [[run[rank::world_size] for run in runs] for rank in range(world_size)]


def micro_batches_per_rank(
    durations_s_N: np.ndarray,
    batch_seconds: float,
    world_size: int,
    device_seconds: float,
    spread: float = SPREAD,
) -> int:
    """The fewest micro-batches per rank and step (accumulate_grad_batches) that keep each within `device_seconds`.

    The same for every step of every epoch. About batch_seconds / (world_size x device_seconds): a little more where
    whole utterances do not divide evenly, less where a small corpus fills no step.

    Raises:
        InputError: a single utterance is longer than `device_seconds`.
    """
    longest_s = float(durations_s_N.max())
    if longest_s > device_seconds:
        raise InputError(
            f"data.device_seconds is {device_seconds:g}, but the longest utterance lasts {longest_s:.2f} s: raise it,"
            " or leave out long utterances with data.max_seconds."
        )
    return max(
        math.ceil(math.ceil(size / int(device_seconds / longest)) / world_size)
        for size, longest in _largest_steps(durations_s_N, batch_seconds, spread)
    )


def _largest_steps(durations_s_N: np.ndarray, batch_seconds: float, spread: float) -> Iterator[tuple[int, float]]:
    """For each pool, utterances and longest duration (s) that a step of it can have at the most."""
    for pool in _pools(durations_s_N, batch_seconds, spread):
        pool_s = durations_s_N[pool]
        yield max(_step_sizes(pool_s, batch_seconds)), float(pool_s.max())


def evaluation_batches(durations_s_N: np.ndarray, device_seconds: float, world_size: int = 1) -> list[np.ndarray]:
    """All utterances, longest first, in batches whose padded cost is at most `device_seconds`; each exactly once.

    At least `world_size` batches, if there are as many utterances: Lightning wants one for every device.
    """
    order_N = np.argsort(-durations_s_N, kind="stable")
    most = len(order_N) // world_size
    batches, start = [], 0
    while start < len(order_N):
        size = max(1, min(most, int(device_seconds / durations_s_N[order_N[start]])))
        batches.append(order_N[start : start + size])
        start += size
    return batches
