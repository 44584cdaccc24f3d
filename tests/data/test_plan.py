from collections import Counter
from itertools import chain
from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2v_lightning.bench.workload import librispeech_durations_s
from w2v_lightning.data.plan import SHARE_TOLERANCE, evaluation_batches, micro_batches_per_rank, num_steps, plan, split
from w2v_lightning.errors import InputError


def librispeech_like(number: int, seed: int = 0) -> np.ndarray:
    """Draw durations of which 64 % are from 13 to 16.5 s, as in train-clean-100."""
    rng = np.random.default_rng(seed)
    long, short = rng.uniform(13, 16.5, round(0.64 * number)), rng.uniform(1.4, 15, number - round(0.64 * number))
    return rng.permutation(np.concatenate([long, short]))


some_durations = st.lists(st.floats(0.03, 40), min_size=1, max_size=150).map(np.array)
like_speech = st.builds(librispeech_like, st.integers(20, 200), st.integers(0, 2**32))
some_batch_seconds = st.sampled_from([5.0, 30.0, 60.0, 200.0, 1e6])
some_seeds = st.integers(0, 2**32)
quick = settings(max_examples=60, deadline=None)


def cost_s(durations_s_N: np.ndarray, positions: np.ndarray) -> float:
    return len(positions) * durations_s_N[positions].max()


def composition(steps: list[np.ndarray]) -> set[frozenset[int]]:
    return {frozenset(step.tolist()) for step in steps}


@quick
@given(some_durations, some_batch_seconds, some_seeds, st.integers(0, 1000))
def test_every_utterance_is_in_exactly_one_step(durations_s_N, batch_seconds, seed, epoch):
    steps = plan(durations_s_N, batch_seconds, seed, epoch)
    assert sorted(chain.from_iterable(step.tolist() for step in steps)) == list(range(len(durations_s_N)))
    assert min(map(len, steps)) > 0


@quick
@given(some_durations, some_batch_seconds, some_seeds)
def test_step_costs_at_most_batch_seconds_unless_it_is_one_longer_utterance(durations_s_N, batch_seconds, seed):
    for step in plan(durations_s_N, batch_seconds, seed, epoch=0):
        assert len(step) == 1 or cost_s(durations_s_N, step) <= batch_seconds * (1 + 1e-9)


@quick
@given(some_durations, some_batch_seconds, some_seeds)
def test_number_of_steps_is_the_same_in_every_epoch(durations_s_N, batch_seconds, seed):
    assert len({len(plan(durations_s_N, batch_seconds, seed, epoch)) for epoch in range(5)}) == 1


@quick
@given(some_durations, some_batch_seconds, some_seeds, st.integers(0, 1000))
def test_plan_is_a_function_of_its_arguments(durations_s_N, batch_seconds, seed, epoch):
    first, second = (plan(durations_s_N.copy(), batch_seconds, seed, epoch) for _ in range(2))
    assert [step.tolist() for step in first] == [step.tolist() for step in second]


@pytest.mark.parametrize("batch_seconds", [200, 1600])
@pytest.mark.parametrize("other", [(3, 1), (4, 0), (0, 3)])
def test_order_and_composition_differ_between_epochs_and_seeds(other, batch_seconds):
    durations_s_N = librispeech_like(5000)
    steps = plan(durations_s_N, batch_seconds, seed=3, epoch=0)
    other_steps = plan(durations_s_N, batch_seconds, *other)
    assert not composition(steps) & composition(other_steps)
    lengths_s, other_lengths_s = ([durations_s_N[step].mean() for step in s] for s in (steps, other_steps))
    assert abs(np.corrcoef(lengths_s, other_lengths_s)[0, 1]) < 0.3


def test_steps_come_in_no_order_of_duration():
    durations_s_N = librispeech_like(1000)
    lengths_s = [durations_s_N[step].mean() for step in plan(durations_s_N, 200, seed=0, epoch=0)]
    assert abs(np.corrcoef(lengths_s, np.arange(len(lengths_s)))[0, 1]) < 0.3


@pytest.mark.parametrize("batch_seconds", [100, 200, 400, 800, 1600, 3200])
def test_steps_are_full_and_alike(batch_seconds):
    durations_s_N = librispeech_like(28_539)
    steps = plan(durations_s_N, batch_seconds, seed=0, epoch=0)
    assert np.mean([cost_s(durations_s_N, step) for step in steps]) > 0.94 * batch_seconds
    assert np.std([durations_s_N[step].sum() for step in steps]) < 0.06 * batch_seconds


def test_number_of_steps_does_not_hang_on_the_order_of_the_manifest():
    durations_s_N = librispeech_like(500)
    first, second = (plan(d, 100, seed=0, epoch=0) for d in (durations_s_N, durations_s_N[::-1]))
    assert len(first) == len(second)


@quick
@given(like_speech, st.sampled_from([200.0, 400.0]), some_seeds, st.integers(1, 16), st.floats(16.5, 200))
def test_split_shares_a_step_evenly_whatever_the_machine(
    durations_s_N, batch_seconds, seed, world_size, device_seconds
):
    steps = plan(durations_s_N, batch_seconds, seed, epoch=0)
    number = micro_batches_per_rank(durations_s_N, batch_seconds, world_size, device_seconds)
    for step in steps:
        ranks = split(durations_s_N, step, world_size, number)
        assert [len(micro_batches) for micro_batches in ranks] == [number] * world_size
        pieces = list(chain.from_iterable(ranks))
        assert sorted(np.concatenate(pieces)) == sorted(step)
        assert max(map(len, pieces)) - min(map(len, pieces)) <= 1
        assert max(cost_s(durations_s_N, piece) for piece in pieces if len(piece)) <= device_seconds * (1 + 1e-9)


@quick
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 5))
def test_ranks_work_at_the_same_time_on_neighbours_in_duration(seed, world_size, num_micro_batches):
    durations_s_N = librispeech_like(60, seed)
    step = np.random.default_rng(seed).permutation(60)[:40]
    ranks = split(durations_s_N, step, world_size, num_micro_batches)
    at_a_time = [np.concatenate(micro_batches) for micro_batches in zip(*ranks, strict=True)]
    in_time = [sorted(durations_s_N[positions]) for positions in at_a_time]
    assert list(chain.from_iterable(in_time[::-1])) == sorted(durations_s_N[step])


@pytest.mark.parametrize(("world_size", "device_seconds"), [(2, 1000), (2, 200), (4, 400), (8, 200)])
def test_ranks_have_equal_shares_of_a_step(world_size, device_seconds):
    """Compare the padded cost of the ranks: one with less work would wait."""
    durations_s_N = librispeech_like(28_539)
    number = micro_batches_per_rank(durations_s_N, 1600, world_size, device_seconds)
    lost = []
    for step in plan(durations_s_N, 1600, seed=0, epoch=0)[:100]:
        ranks = split(durations_s_N, step, world_size, number)
        costs_s = [sum(cost_s(durations_s_N, piece) for piece in rank) for rank in ranks]
        lost.append(1 - np.mean(costs_s) / max(costs_s))
    assert np.mean(lost) < 0.01


def test_a_step_with_too_few_utterances_leaves_some_of_the_first_micro_batches_empty():
    durations_s_N = np.full(5, 10.0)
    assert all(len(rank) == 1 for rank in split(durations_s_N, np.arange(5), 5, 1))
    sizes = [[len(piece) for piece in rank] for rank in split(durations_s_N, np.arange(5), 3, 2)]
    assert sizes == [[1, 1], [1, 1], [0, 1]]


@quick
@given(some_seeds, st.sampled_from([60.0, 100.0, 400.0]), st.integers(1, 4), st.floats(16.5, 120))
def test_micro_batches_are_no_more_than_needed(seed, batch_seconds, world_size, device_seconds):
    """Check that one micro-batch fewer would exceed the limit in some epoch."""
    durations_s_N = librispeech_like(100, seed)
    number = micro_batches_per_rank(durations_s_N, batch_seconds, world_size, device_seconds)
    if number == 1:
        return
    epochs = [plan(durations_s_N, batch_seconds, seed, epoch) for epoch in range(20)]
    steps = [step for steps in epochs for step in steps]
    assert any(
        ceil(len(s) / (world_size * (number - 1))) * durations_s_N[s].max() > 0.95 * device_seconds for s in steps
    )


@pytest.mark.parametrize("device_seconds", [100, 200, 400])
@pytest.mark.parametrize("world_size", [1, 2, 4, 8, 16])
def test_published_settings_come_out_as_published(world_size, device_seconds):
    durations_s_N = librispeech_durations_s(np.random.default_rng(0))
    number = micro_batches_per_rank(durations_s_N, 1600, world_size, device_seconds, is_share=True)
    assert number == ceil(1600 / device_seconds / world_size)
    most_s = max(
        cost_s(durations_s_N, piece)
        for step in plan(durations_s_N, 1600, seed=0, epoch=0)
        for rank in split(durations_s_N, step, world_size, number)
        for piece in rank
    )
    assert most_s <= device_seconds * (1 + SHARE_TOLERANCE)


def test_a_measured_limit_is_never_exceeded_though_it_is_a_share():
    durations_s_N = librispeech_durations_s(np.random.default_rng(0))
    assert [micro_batches_per_rank(durations_s_N, 1600, w, 200) for w in (1, 2, 4, 8, 16)] == [9, 5, 3, 2, 1]


@quick
@given(like_speech, st.sampled_from([60.0, 200.0]), st.integers(1, 16), st.integers(1, 12))
def test_no_share_exceeds_the_tolerance(durations_s_N, batch_seconds, world_size, shares):
    device_seconds = max(batch_seconds / shares, 16.5)
    number = micro_batches_per_rank(durations_s_N, batch_seconds, world_size, device_seconds, is_share=True)
    assert number <= micro_batches_per_rank(durations_s_N, batch_seconds, world_size, device_seconds)
    for step in plan(durations_s_N, batch_seconds, 0, epoch=0):
        ranks = split(durations_s_N, step, world_size, number)
        costs_s = [cost_s(durations_s_N, piece) for rank in ranks for piece in rank if len(piece)]
        assert max(costs_s) <= device_seconds * (1 + SHARE_TOLERANCE) * (1 + 1e-9)


@quick
@given(like_speech, st.sampled_from([60.0, 200.0]), st.integers(1, 16), st.floats(16.5, 60))
def test_no_epoch_exceeds_the_device(durations_s_N, batch_seconds, world_size, device_seconds):
    number = micro_batches_per_rank(durations_s_N, batch_seconds, world_size, device_seconds)
    for epoch in range(5):
        for step in plan(durations_s_N, batch_seconds, 0, epoch):
            ranks = split(durations_s_N, step, world_size, number)
            assert all(cost_s(durations_s_N, p) <= device_seconds * (1 + 1e-9) for r in ranks for p in r if len(p))


def test_utterance_longer_than_a_device_holds_is_refused_with_both_remedies():
    durations_s_N = np.array([3.0, 35.155, 2.0])
    with pytest.raises(InputError) as raised:
        micro_batches_per_rank(durations_s_N, 100, 1, 30)
    assert "data.device_seconds is 30, but the longest utterance lasts 35.1" in str(raised.value)
    assert "raise it, or leave out long utterances with data.max_seconds" in str(raised.value)


@pytest.mark.parametrize("device_seconds", [100, 200, 400, 1600])
def test_at_most_4_percent_of_what_a_device_computes_on_is_padding(device_seconds):
    durations_s_N = librispeech_like(28_539)
    steps = plan(durations_s_N, 1600, seed=0, epoch=0)
    number = micro_batches_per_rank(durations_s_N, 1600, 1, device_seconds)
    pieces = [piece for step in steps for piece in split(durations_s_N, step, 1, number)[0]]
    computed_s = sum(cost_s(durations_s_N, piece) for piece in pieces)
    assert 1 - durations_s_N.sum() / computed_s <= 0.04


@quick
@given(some_durations, st.floats(1, 200))
def test_evaluation_batches_hold_everything_once_within_the_device(durations_s_N, device_seconds):
    batches = evaluation_batches(durations_s_N, device_seconds)
    assert Counter(chain.from_iterable(b.tolist() for b in batches)) == Counter(range(len(durations_s_N)))
    assert all(len(b) == 1 or cost_s(durations_s_N, b) <= device_seconds * (1 + 1e-9) for b in batches)


def test_evaluation_begins_with_the_longest_so_that_memory_runs_out_at_once_or_never():
    durations_s_N = librispeech_like(300)
    batches = evaluation_batches(durations_s_N, 100)
    longest_s = [durations_s_N[batch].max() for batch in batches]
    assert longest_s == sorted(longest_s, reverse=True)
    assert longest_s[0] == durations_s_N.max()


@pytest.mark.parametrize("device_seconds", [100, 200])
def test_ranks_wait_for_each_other_for_less_than_3_percent_of_the_time(device_seconds):
    """Average over world sizes: with 16 devices, a step of 1,600 s has micro-batches of 6 or 7 utterances."""
    durations_s_N = librispeech_like(28_539)
    steps = plan(durations_s_N, 1600, seed=0, epoch=0)

    def idle_share(world_size):
        number = micro_batches_per_rank(durations_s_N, 1600, world_size, device_seconds)
        ranks_of_steps = [split(durations_s_N, step, world_size, number) for step in steps]
        together = [pieces for ranks in ranks_of_steps for pieces in zip(*ranks, strict=True)]
        costs_s = np.array([[cost_s(durations_s_N, p) if len(p) else 0 for p in pieces] for pieces in together])
        return 1 - costs_s.mean() / costs_s.max(axis=1).mean()

    shares = {world_size: idle_share(world_size) for world_size in (1, 2, 3, 4, 6, 8, 12, 16)}
    assert np.mean(list(shares.values())) <= 0.02, shares
    assert max(shares.values()) <= 0.04, shares
    assert all(shares[world_size] <= 0.03 for world_size in (2, 3, 4, 6, 8)), shares


def test_more_spread_mixes_durations_and_costs_padding():
    durations_s_N = librispeech_like(28_539)

    def mix_and_padding(spread):
        steps = plan(durations_s_N, 1600, seed=0, epoch=0, spread=spread)
        padded_s = sum(cost_s(durations_s_N, step) for step in steps)
        return np.mean([durations_s_N[step].std() for step in steps]), 1 - durations_s_N.sum() / padded_s

    mixes, paddings = zip(*map(mix_and_padding, (1.02, 1.05, 1.2, 2.0)), strict=True)
    assert sorted(mixes) == list(mixes)
    assert sorted(paddings) == list(paddings)
    assert mixes[-1] > 3 * mixes[0]


@pytest.mark.parametrize("spread", [1.0, 1.05, 3.0])
def test_number_of_steps_is_known_without_a_plan(spread):
    durations_s_N = librispeech_like(2000)
    assert num_steps(durations_s_N, 400, spread) == len(plan(durations_s_N, 400, seed=1, epoch=2, spread=spread))
