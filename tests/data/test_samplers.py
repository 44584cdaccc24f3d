from itertools import chain

import numpy as np
import pytest

from w2v_lightning.data.samplers import EvaluationSampler, TrainSampler


def durations_s(number: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(1.4, 16.5, number)


def train_samplers(durations_s_N, world_size, *, seed=0, batch_seconds=300.0, device_seconds=40.0):
    limits = {"batch_seconds": batch_seconds, "device_seconds": device_seconds, "world_size": world_size}
    return [TrainSampler(durations_s_N, seed=seed, rank=rank, **limits) for rank in range(world_size)]


def positions(slots) -> list[int]:
    return list(chain.from_iterable(slot.positions.tolist() for slot in slots))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_are_disjoint_complete_and_in_step(world_size):
    durations_s_N = durations_s(200)
    samplers = train_samplers(durations_s_N, world_size)
    for epoch in range(2):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        shares = [list(sampler) for sampler in samplers]
        assert sorted(chain.from_iterable(map(positions, shares))) == list(range(200))
        assert {len(share) for share in shares} == {len(samplers[0])}
        for together in zip(*shares, strict=True):
            places = {
                (s.epoch, s.global_step, s.micro_batch, s.num_micro_batches, tuple(s.step_positions)) for s in together
            }
            assert len(places) == 1
            assert places.pop()[0] == epoch


def test_slots_count_through_the_epoch_and_know_the_size_of_their_step():
    samplers = train_samplers(durations_s(200), 2)
    number = samplers[0].num_micro_batches
    shares = [list(sampler) for sampler in samplers]
    assert [(s.global_step, s.micro_batch) for s in shares[0]] == [
        (step, micro_batch) for step in range(samplers[0].num_steps) for micro_batch in range(number)
    ]
    for step in range(samplers[0].num_steps):
        of_step = [s for share in shares for s in share if s.global_step == step]
        assert sorted(positions(of_step)) == sorted(of_step[0].step_positions)


def test_steps_are_the_same_on_any_machine():
    durations_s_N = durations_s(200)

    def steps(world_size, device_seconds):
        samplers = train_samplers(durations_s_N, world_size, device_seconds=device_seconds)
        slots = list(chain.from_iterable(samplers))
        return [{*positions(s for s in slots if s.global_step == step)} for step in range(samplers[0].num_steps)]

    reference = steps(1, 300)
    assert all(steps(*machine) == reference for machine in [(1, 40), (2, 60), (3, 45), (4, 300)])


def test_order_changes_with_epoch_and_seed_only():
    (sampler,), (again,), (other,) = (train_samplers(durations_s(100), 1, seed=seed) for seed in (0, 0, 1))
    first = positions(sampler)
    assert positions(again) == positions(sampler) == first != positions(other)
    sampler.set_epoch(1)
    assert positions(sampler) != first
    sampler.set_epoch(0)
    assert positions(sampler) == first


def test_too_many_devices_for_a_step_get_fillers_that_do_not_count():
    durations_s_N = durations_s(100)
    samplers = train_samplers(durations_s_N, 40)
    slots = [list(sampler) for sampler in samplers]
    assert len({len(rank) for rank in slots}) == 1  # no rank waits for a batch that another does not have
    counted = [slot for rank in slots for slot in rank if not slot.is_filler]
    fillers = [slot for rank in slots for slot in rank if slot.is_filler]
    assert sorted(positions(counted)) == list(range(100))
    assert fillers
    assert {len(slot.positions) for slot in fillers} == {1}
    for slot in fillers:
        assert slot.positions[0] in positions(s for s in counted if s.global_step == slot.global_step)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("number", [1, 4, 9, 73])
def test_evaluation_covers_each_utterance_once_over_the_ranks(world_size, number):
    durations_s_N = durations_s(number)
    samplers = [
        EvaluationSampler(durations_s_N, device_seconds=35, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert sorted(chain.from_iterable(map(positions, samplers))) == list(range(number))
    assert max(map(len, samplers)) - min(map(len, samplers)) <= 1
    assert number < world_size or min(map(len, samplers)) >= 1  # Lightning fails on a rank without batches
    before = [positions(sampler) for sampler in samplers]
    for sampler in samplers:
        sampler.set_epoch(3)
    assert [positions(sampler) for sampler in samplers] == before


def places(slots) -> list[tuple]:
    return [(s.epoch, s.global_step, s.micro_batch, s.positions.tolist()) for s in slots]


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_resumed_epoch_is_the_rest_and_the_next_is_whole(world_size):
    durations_s_N = durations_s(100)
    for whole, resumed in zip(*(train_samplers(durations_s_N, world_size) for _ in range(2)), strict=True):
        for first_step in range(whole.num_steps + 1):
            whole.set_epoch(4)
            resumed.resume(4, first_step)
            assert places(resumed) == places(whole)[first_step * whole.num_micro_batches :]
            assert len(resumed) == len(whole)  # Lightning uses it as the length of every epoch
            for epoch in (5, 3):
                whole.set_epoch(epoch)
                resumed.set_epoch(epoch)
                assert places(resumed) == places(whole)


def test_an_iterator_made_before_the_epoch_is_known_is_of_the_epoch_resumed():
    """Check the epoch of workers: Lightning makes the iterator, whose workers request slots, before set_epoch."""
    (sampler,) = train_samplers(durations_s(100), 1)
    sampler.resume(2, 1)
    slots = iter(sampler)
    first = next(slots)
    sampler.set_epoch(1)
    assert {slot.epoch for slot in [first, *slots]} == {2}
    assert first.global_step == 1
