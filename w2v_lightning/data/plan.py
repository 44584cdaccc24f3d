"""Plan of an epoch, made from durations alone by two pure functions that never read audio.

    plan(durations, batch_seconds, seed, epoch)              -> global steps 0, 1, 2 ...: a set of utterances each
    split(durations, step, world_size, num_micro_batches)    -> world_size x num_micro_batches sets, equal across ranks

`batch_seconds` belongs to the experiment: the audio of one optimiser step, with padding. `device_seconds` and the world
size belong to the machine, and only change how a step is split. So the steps of an epoch, their number and their order
are the same on any machine, and the position in an epoch is one integer.

The padded cost of a set of utterances is (number of utterances) x (longest duration): the seconds a device processes.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator

import numpy as np

from w2v_lightning.errors import InputError

# Increased with every change of the rules below: a run with different steps cannot resume within its epoch.
VERSION = 2

# A pool is a range of the sorted durations. Its utterances are shuffled and cut into steps. The ratio of its longest to
# its shortest utterance (the spread) bounds the padding. But even if durations are sparse, a pool has at least two
# steps, or every epoch would combine the same utterances. A pool ends where its last step is full, so that all steps of
# an epoch have about the same amount of audio, close to the limit of `batch_seconds`.
SPREAD = 1.05
MIN_STEPS_PER_POOL = 2

# The number of utterances per step, if there are enough, is a multiple that any usual number of devices divides: with 7
# utterances on one device and 8 on the next, the first would wait an eighth of the time.
MULTIPLES = (48, 32, 24, 16, 12, 8, 6, 4, 3, 2, 1)
LEAST_FILL = 0.9  # of the utterances that batch_seconds allows

# A published recipe gives each of 8 devices 200 s of a step of 1,600 s. But utterances are whole and padded: an equal
# share of such a step may cost a little more than an eighth of `batch_seconds`. Measured on 28,539 durations like those
# of train-clean-100: 2.7 % more at 200 s, and 4.8 % at 100 s, where one utterance weighs more.
SHARE_TOLERANCE = 0.05


def plan(
    durations_s_N: np.ndarray, batch_seconds: float, seed: int, epoch: int, spread: float = SPREAD
) -> list[np.ndarray]:
    """Return the global steps of an epoch: arrays of positions into `durations_s_N`, each utterance exactly once.

    A step has utterances of similar duration. Each epoch draws other steps, in another order. The padded cost of a step
    is at most `batch_seconds` (an utterance longer than that is a step of its own), and the number of steps is the same
    in every epoch.

    Args:
        durations_s_N: seconds of each utterance.
        batch_seconds: maximum padded cost of a step.
        seed, epoch: seeds of the random draw.
        spread: ratio of the longest to the shortest utterance of a step, if the corpus is large enough. A larger ratio
            mixes durations better within a step and costs padding.
    """
    rng = np.random.Generator(np.random.PCG64([seed, epoch]))
    steps = []
    for pool in _pools(durations_s_N, batch_seconds, spread):
        sizes = _step_sizes(durations_s_N[pool], batch_seconds)
        steps += np.split(rng.permutation(pool), np.cumsum(sizes)[:-1])
    return [steps[i] for i in rng.permutation(len(steps))]


def num_steps(durations_s_N: np.ndarray, batch_seconds: float, spread: float = SPREAD) -> int:
    """Number of global steps of every epoch."""
    pools = _pools(durations_s_N, batch_seconds, spread)
    return sum(len(_step_sizes(durations_s_N[pool], batch_seconds)) for pool in pools)


def _pools(durations_s_N: np.ndarray, batch_seconds: float, spread: float) -> Iterator[np.ndarray]:
    """Yield pools: positions in order of duration, cut at the spread; each pool but the last fills its steps."""
    order_N = np.argsort(durations_s_N, kind="stable")
    sorted_s_N = durations_s_N[order_N]
    start = 0
    while start < len(order_N):
        end = _end_of_pool(sorted_s_N, start, batch_seconds, spread)
        if len(order_N) - end < _full_step(sorted_s_N[-1], batch_seconds):
            end = len(order_N)  # the rest would be one step at most, perhaps a single utterance
        yield order_N[start:end]
        start = end


def _end_of_pool(sorted_s_N: np.ndarray, start: int, batch_seconds: float, spread: float) -> int:
    """Return the end of a pool: as many full steps as fit the spread, at least the minimum, or all remaining data."""
    longest_s = sorted_s_N[start] * spread
    shorter_s = batch_seconds / (int(batch_seconds / longest_s) + 1)  # at this duration, a step has one more utterance
    longest_s = shorter_s if shorter_s > sorted_s_N[start] else longest_s
    end = int(np.searchsorted(sorted_s_N, longest_s, side="right"))
    num_steps = max(MIN_STEPS_PER_POOL, (end - start) // _full_step(sorted_s_N[end - 1], batch_seconds))

    def excess(end: int) -> int:  # grows with `end`, because longer utterances make smaller steps
        return end - start - num_steps * _full_step(sorted_s_N[end - 1], batch_seconds)

    return start + bisect_right(range(start + 1, len(sorted_s_N) + 1), 0, key=excess)


def _full_step(longest_s: float, batch_seconds: float) -> int:
    """Number of utterances of a step of a large pool."""
    return next(_full_steps(longest_s, batch_seconds))[0]


def _full_steps(longest_s: float, batch_seconds: float) -> Iterator[tuple[int, int]]:
    """Yield numbers of utterances that fill a step, with their multiple; those that most device counts divide first."""
    most = max(1, int(batch_seconds / longest_s))
    for multiple in MULTIPLES:
        largest = most // multiple * multiple
        if largest >= LEAST_FILL * most:
            yield largest, multiple


def _step_sizes(pool_s: np.ndarray, batch_seconds: float) -> list[int]:
    """Return the number of utterances of each step of a pool: about equal, within `batch_seconds` in any order."""
    for largest, multiple in _full_steps(pool_s.max(), batch_seconds):
        num_steps = math.ceil(len(pool_s) / largest)
        blocks, rest = divmod(len(pool_s), multiple)
        least, more = divmod(blocks, num_steps)
        if least >= 2 or multiple == 1:  # otherwise, the steps would be too unequal
            break
    sizes = [(least + (step < more)) * multiple for step in range(num_steps)]
    sizes[-1] += rest
    return sizes


def split(
    durations_s_N: np.ndarray, step: np.ndarray, world_size: int, num_micro_batches: int
) -> list[list[np.ndarray]]:
    """Split one global step for a machine: `split(...)[rank][micro_batch]` are positions into `durations_s_N`.

    The step is sorted by duration and cut into runs. Each run is dealt to the ranks in turn, and makes one micro-batch
    on each: it has about the same size and length on all ranks, so none waits for another. The sizes of micro-batches
    differ by at most one utterance; those of shorter utterances have more. If the step has too few utterances, some of
    the first micro-batches are empty.
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
    is_share: bool = False,
) -> int:
    """Return the fewest micro-batches per rank and step (accumulate_grad_batches) that fit `device_seconds` each.

    The number is the same for every step of every epoch: about batch_seconds / (world_size x device_seconds), a little
    more if whole utterances do not divide evenly, less if a small corpus does not fill a step.

    Args:
        durations_s_N, batch_seconds, spread: those of `plan`.
        world_size: number of devices.
        device_seconds: maximum padded cost of a micro-batch.
        is_share: whether `device_seconds` is the setting of a recipe, not a limit that was measured. If it is 1/k of
            `batch_seconds`, for a whole k, a step then is k micro-batches on any number of devices that divides k, as
            published, if none of them costs more than SHARE_TOLERANCE above `device_seconds`.

    Raises:
        InputError: a single utterance is longer than `device_seconds`.
    """
    longest_s = float(durations_s_N.max())
    if longest_s > device_seconds:
        raise InputError(
            f"data.device_seconds is {device_seconds:g}, but the longest utterance lasts {longest_s:.2f} s: raise it,"
            " or leave out long utterances with data.max_seconds."
        )
    steps = list(_largest_steps(durations_s_N, batch_seconds, spread))

    def fewest(limit_s: float) -> int:
        return max(math.ceil(math.ceil(size / int(limit_s / longest)) / world_size) for size, longest in steps)

    number = fewest(device_seconds)
    shares = round(batch_seconds / device_seconds)
    if is_share and math.isclose(shares * device_seconds, batch_seconds):
        published = math.ceil(shares / world_size)
        if published < number and fewest(device_seconds * (1 + SHARE_TOLERANCE)) <= published:
            return published
    return number


def _largest_steps(durations_s_N: np.ndarray, batch_seconds: float, spread: float) -> Iterator[tuple[int, float]]:
    """Yield, for each pool, the largest number of utterances of a step and their longest duration (s)."""
    for pool in _pools(durations_s_N, batch_seconds, spread):
        pool_s = durations_s_N[pool]
        yield max(_step_sizes(pool_s, batch_seconds)), float(pool_s.max())


def evaluation_batches(durations_s_N: np.ndarray, device_seconds: float, world_size: int = 1) -> list[np.ndarray]:
    """Return batches of all utterances, longest first, each once, with a padded cost of at most `device_seconds`.

    There are at least `world_size` batches if there are as many utterances: Lightning needs one for every device.
    """
    order_N = np.argsort(-durations_s_N, kind="stable")
    most = len(order_N) // world_size
    batches, start = [], 0
    while start < len(order_N):
        size = max(1, min(most, int(device_seconds / durations_s_N[order_N[start]])))
        batches.append(order_N[start : start + size])
        start += size
    return batches
