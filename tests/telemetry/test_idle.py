"""Idle time of the device, by the activity of the host."""

import pytest
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

from w2v_lightning.telemetry.idle import Kernel, Range, covered_s, idle_time, kernels_of, ranges_of

RANGES = [Range("optimiser and clipping", 0, 100), Range("forward", 10, 40), Range("backward", 50, 90)]


def test_intervals_that_overlap_count_once():
    assert covered_s([(0, 4e6), (5e6, 6e6), (1e6, 2e6), (3e6, 5.5e6)]) == 6


@pytest.mark.parametrize(
    ("launch_us", "waits_for"),
    [(30, "forward"), (60, "backward"), (95, "optimiser and clipping"), (150, "between steps")],
)
def test_a_gap_counts_with_what_the_host_was_at_when_it_handed_over_the_next_kernel(launch_us, waits_for):
    result = idle_time([Kernel(0, 20, 0), Kernel(launch_us + 3, launch_us + 9, launch_us)], RANGES)
    assert result.waits_s == pytest.approx({waits_for: (launch_us + 3 - 20) / 1e6})
    assert result.total_s == pytest.approx((launch_us + 3 - 20) / 1e6)


@pytest.mark.parametrize("launch_us", [15, None])
def test_a_kernel_that_was_handed_over_in_time_did_not_wait_for_the_host(launch_us):
    result = idle_time([Kernel(0, 20, 0), Kernel(25, 30, launch_us)], RANGES)
    assert result.waits_s == pytest.approx({"with work in its queue": 5e-6})


def test_the_longest_wait_comes_first_and_kernels_of_two_streams_may_overlap():
    kernels = [Kernel(60, 70, 58), Kernel(0, 20, 0), Kernel(10, 45, 9), Kernel(46, 50, 44)]
    result = idle_time(kernels, RANGES)
    assert list(result.waits_s.items()) == [("backward", pytest.approx(10e-6)), ("with work in its queue", 1e-6)]


def test_communication_counts_where_nothing_else_ran():
    kernels = [Kernel(0, 20, 0), Kernel(15, 32, 0, is_communication=True), Kernel(30, 40, 0)]
    assert idle_time(kernels, RANGES).communication_alone_s == pytest.approx(10e-6)


def test_no_kernels_no_waits():
    assert idle_time([], RANGES).waits_s == {}


def event(id_, name, start_us, end_us, on_device=False, is_mark=False):
    place = {"thread": 1, "start_us": start_us, "end_us": end_us, "use_device": "cuda"}
    kind = {"device_type": DeviceType.CUDA if on_device else DeviceType.CPU, "is_user_annotation": is_mark}
    return FunctionEvent(id=id_, name=name, **place, **kind)


def test_what_the_profiler_has_seen():
    events = [
        event(1, "Optimizer.step#AdamW.step", 0, 100, is_mark=True),
        event(2, "forward", 10, 40, is_mark=True),
        event(3, "attention", 11, 19, is_mark=True),
        event(3, "forward", 20, 60, is_mark=True, on_device=True),  # a range on the device's timeline
        event(7, "aten::mm", 12, 18),  # ids of operators are unrelated: this did not launch kernel 7
        event(7, "cudaLaunchKernel", 14, 15),
        event(8, "cuLaunchKernelEx", 16, 17),
        event(7, "nvjet", 30, 35, on_device=True),
        event(8, "ncclDevKernel_AllReduce", 36, 39, on_device=True),
        event(9, "Memset", 40, 41, on_device=True),  # its launch was not recorded
    ]
    assert ranges_of(events) == [Range("optimiser and clipping", 0, 100), Range("forward", 10, 40)]
    assert kernels_of(events) == [Kernel(30, 35, 14), Kernel(36, 39, 16, True), Kernel(40, 41, None)]
