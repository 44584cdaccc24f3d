"""The step-time model against sums made by hand and against a simulated network."""

import math
from dataclasses import replace

import numpy as np
import pytest
from synthetic_study import cpu, parameters, t4

from w2v_lightning.errors import InputError
from w2v_lightning.perf_model.step_time import LATENCY_BYTES, Terms, all_reduce_s, bottleneck, names, slowest, terms


def parts_of(setup, **changes):
    return terms(setup, parameters([setup], **changes))


def test_more_devices_share_the_computing():
    one, four = t4(), t4(4, logged_every=math.inf)
    assert parts_of(one, flops_per_s=1e13).compute_s == pytest.approx(1600 * 2.8e10 / 1e13, rel=1e-3)
    assert parts_of(four, launch_s=1e-9).compute_s == pytest.approx(parts_of(one, launch_s=1e-9).compute_s / 4)
    assert parts_of(four).overhead_s == parts_of(one).overhead_s  # it does not shrink


def test_a_small_micro_batch_is_handed_over_no_faster_than_a_large_one():
    small, large = t4(computed_s=20.0, micro_batches=2), t4()
    known = parameters([small], flops_per_s=1e13, launch_s=0.05)
    assert terms(small, known).compute_s == pytest.approx(2 * 0.05, rel=0.02)  # the GPU alone: 0.056 s
    assert terms(large, known).compute_s == pytest.approx(1600 * 2.8e10 / 1e13, rel=1e-3)
    assert [bottleneck(setup, known) for setup in (small, large)] == ["compute: launching", "compute"]


def test_a_gpu_and_a_host_that_take_as_long_wait_for_each_other_in_turn():
    setup = t4(computed_s=20.0, micro_batches=1)
    known = parameters([setup], flops_per_s=1e13, launch_s=0.056)
    assert terms(setup, known).compute_s == pytest.approx(1.149 * 0.056, rel=1e-3)


def test_twice_the_layers_take_twice_as_long_to_hand_over():
    setup = t4(computed_s=20.0, micro_batches=1)
    known = parameters([setup], flops_per_s=1e15, launch_s=0.05)
    assert terms(replace(setup, layers=24), known).compute_s == pytest.approx(0.1, rel=1e-3)


def test_processes_on_too_few_cores_bring_nothing():
    two, four = (parts_of(cpu(n, logged_every=math.inf), contention=0.2) for n in (2, 4))
    assert two.compute_s == pytest.approx(1.2 / 2 * parts_of(cpu(1)).compute_s)
    assert four.compute_s == pytest.approx(two.compute_s)
    assert four.overhead_s == pytest.approx(2 * two.overhead_s)  # each process has its own overhead, and half a core


def test_emulated_hosts_share_the_cores_of_one_machine():
    apart, together = parts_of(cpu(1, hosts=4, link_mbit=100)), parts_of(cpu(4))
    assert apart.compute_s == pytest.approx(together.compute_s)


def test_the_loss_that_is_logged_is_an_all_reduce():
    often, never = (cpu(2, logged_every=every) for every in (2, math.inf))
    logging_s = parts_of(often).overhead_s - parts_of(never).overhead_s
    assert logging_s == pytest.approx(sum(all_reduce_s(often, parameters([often]), LATENCY_BYTES, 1)) / 2)
    assert parts_of(cpu(1, logged_every=2)).overhead_s == parts_of(cpu(1, logged_every=4)).overhead_s


def test_gloo_sends_no_more_than_two_segments_ahead():
    """Measured on two hosts with 1,000 Mbit/s and 60 ms: 8 MiB more take 0.56 s longer, which is 15 MB/s."""
    late = cpu(1, hosts=2, link_mbit=1000, delay_ms=60)
    more_s, less_s = (sum(all_reduce_s(late, parameters([late]), size * 2**20, 1)) for size in (16, 8))
    assert more_s - less_s == pytest.approx(0.56, rel=0.15)
    assert bottleneck(replace(late, computed_s=6.0), parameters([late])) == "communication: latency"
    narrow = cpu(1, hosts=2, link_mbit=20, delay_ms=1, computed_s=6.0)
    assert bottleneck(narrow, parameters([narrow])) == "communication: bandwidth"


def test_ring_by_hand():
    """Ring of 4 ranks: 6 steps, each with a quarter of the bytes over one hop."""
    setup = t4(4)
    hops_s, bytes_s = all_reduce_s(setup, parameters([setup], hop_s=2e-5, bytes_per_s=1e9), 4_000_000, 3)
    assert hops_s == pytest.approx(3 * 6 * 2e-5)
    assert bytes_s == pytest.approx(6 * 1e6 / 1e9)


def test_ring_between_hosts_by_hand():
    """Ring of 2 hosts with 2 ranks each: 2 of the 4 hops are between hosts, over a link of known rate."""
    setup = cpu(2, hosts=2, link_mbit=80, delay_ms=3)
    known = parameters([setup], hop_s=1e-4, link_hop_s=3e-3, link_efficiency=0.5)
    hops_s, bytes_s = all_reduce_s(setup, known, 4_000_000, 1)
    share = setup.device_share  # gloo uses the cores that the processes share
    assert hops_s == pytest.approx(6 * (2 * 1e-4 / share + 2 * 3e-3) / 4)
    assert bytes_s == pytest.approx(6 * 1e6 / (0.5 * 1e7))


def test_many_gpus_take_a_tree_for_small_messages_and_gloo_never_does():
    many = t4(1, hosts=16)
    known = parameters([many], link_hop_s=1e-4)
    assert sum(all_reduce_s(many, known, 4096, 1)) == pytest.approx(2 * 4 * 1e-4, rel=0.05)
    large = sum(all_reduce_s(many, known, 10**9, 1))
    assert large < 2 * 10**9 / (0.75 * many.link_bytes_per_s)  # faster than a tree: a ring
    processes = cpu(1, hosts=16, link_mbit=100)
    assert sum(all_reduce_s(processes, parameters([processes], link_hop_s=1e-4), 0, 1)) == pytest.approx(30e-4)


def simulated_exposed_s(setup, known, backward_s):
    """Simulate buckets that are sent one after the other, each when all of its gradients are ready."""
    buckets, total = setup.gradient_buckets, setup.gradient_bytes
    first = min(2**20, total / buckets)
    sizes = [first, *[(total - first) / (buckets - 1)] * (buckets - 1)] if buckets > 1 else [total]
    hops_s, bytes_s = all_reduce_s(setup, known, total, buckets)
    free_s = filled = 0.0
    for size in sizes:
        filled += size
        free_s = max(free_s, backward_s * filled / total) + hops_s / buckets + bytes_s * size / total
    return free_s - backward_s


@pytest.mark.parametrize("seed", range(40))
def test_exposed_communication_is_what_a_simulated_backward_pass_cannot_hide(seed):
    rng = np.random.default_rng(seed)
    setup = replace(
        t4(int(rng.choice([1, 4])), hosts=int(rng.choice([2, 4, 8]))),
        gradient_bytes=int(rng.uniform(3e7, 1e9)),
        gradient_buckets=1 + seed,
        micro_batches=int(rng.integers(1, 4)),
    )
    known = parameters([setup], overlap=0.6, link_hop_s=float(10 ** rng.uniform(-5, -2)))
    parts = terms(setup, known)
    backward_s = 0.6 * parts.compute_s / setup.micro_batches
    simulated_s = simulated_exposed_s(setup, known, backward_s)
    assert parts.exposed_s == pytest.approx(simulated_s, rel=1e-9)


def test_loading_runs_beside_computing():
    slow = parts_of(cpu(1, workers=1), decode_audio_s_per_s=10.0)
    assert slow.data_s == pytest.approx(6.0)
    assert slow.step_s == pytest.approx(6.0 + slow.overhead_s)
    assert parts_of(cpu(1, workers=2), decode_audio_s_per_s=10.0).data_s == pytest.approx(3.0)


def test_without_workers_loading_comes_behind_computing():
    parts = parts_of(cpu(1, workers=0), decode_audio_s_per_s=10.0)
    assert (parts.data_s, parts.serial_loading_s) == (0.0, pytest.approx(6.0))
    assert parts.step_s == pytest.approx(parts.compute_s + 6.0 + parts.overhead_s)
    assert parts.bottleneck == "data"
    assert parts.gains_s()["compute"] == parts.compute_s  # no loading is hidden by computing


def test_slow_storage_is_not_helped_by_workers_but_by_hosts():
    for workers in (1, 8):
        assert parts_of(cpu(1, workers=workers, storage_mbit=1), storage_audio_s_per_s=4.0).data_s == pytest.approx(
            15.0
        )
    setup = cpu(1, hosts=2, link_mbit=1000, storage_mbit=1)
    assert parts_of(setup, storage_audio_s_per_s=4.0).data_s == pytest.approx(7.5)


def test_bottleneck_is_what_it_pays_most_to_speed_up():
    parts = Terms(compute_s=2.0, data_s=2.5, exposed_s=0.6, imbalance_s=0.1, overhead_s=0.2)
    assert parts.step_s == pytest.approx(3.4)
    assert parts.gains_s()["data"] == pytest.approx(0.5)
    assert parts.gains_s()["compute"] == 0.0  # faster computing would not shorten the step
    assert parts.bottleneck == "communication"
    assert replace(parts, data_s=3.0).bottleneck == "data"
    assert replace(parts, data_s=0.0).bottleneck == "compute"


def test_slowest_of_two_is_known():
    assert slowest(1) == 0.0
    assert slowest(2) == pytest.approx(1 / math.sqrt(math.pi), rel=0.05)
    drawn = np.random.default_rng(0).standard_normal((100_000, 8)).max(axis=1).mean()
    assert slowest(8) == pytest.approx(drawn, rel=0.05)


def test_parameters_are_those_that_matter():
    assert set(names(t4())) == {"flops_per_s", "launch_s", "overhead_s", "decode_audio_s_per_s"}
    assert "contention" in names(cpu())
    assert "link_efficiency" in names(t4(1, hosts=2))
    assert "bytes_per_s" not in names(t4(1, hosts=2))  # one GPU per host: no traffic within a host
    assert names(t4()) == names(replace(t4(), device="T4"))


def test_draws_are_taken_all_at_once():
    setup = cpu(2, hosts=2, link_mbit=100, delay_ms=2, storage_mbit=2)
    values = parameters([setup])
    many = {name: value * np.array([1.0, 1.1, 0.7]) for name, value in values.items()}
    each = [terms(setup, {name: value[i] for name, value in many.items()}).step_s for i in range(3)]
    assert terms(setup, many).step_s == pytest.approx(each)


def test_a_link_of_unknown_rate_is_said():
    setup = replace(t4(1, hosts=2), link_bytes_per_s=None)
    with pytest.raises(InputError, match=r"ml.g4dn.2xlarge.*its rate is unknown; set the cell's link_bytes_per_s"):
        parts_of(setup)
