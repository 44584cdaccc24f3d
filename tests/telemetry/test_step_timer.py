"""StepTimer with a simulated device that lags behind the host."""

import pytest

from w2v_lightning.telemetry.step_timer import HostEvent, StepTimer, Times


class Device:
    """Simulated device that finishes its queue when the test tells it to."""

    def __init__(self):
        self.events = []

    def new_event(self):
        return DeviceEvent(self)

    def reaches(self, *times_s):
        """Pass the next pending events at these times."""
        waiting = [event for event in self.events if event.time_s is None]
        for event, time_s in zip(waiting, times_s, strict=False):
            event.time_s = time_s


class DeviceEvent:
    def __init__(self, device):
        self.device, self.time_s = device, None

    def record(self):
        self.device.events.append(self)

    def query(self):
        return self.time_s is not None

    def elapsed_time(self, end_event):
        assert self.query(), "asking for it would have waited for the device"
        assert end_event.query(), "asking for it would have waited for the device"
        return 1000 * (end_event.time_s - self.time_s)


def test_time_is_shared_between_device_data_and_host():
    device = Device()
    timer = StepTimer(device.new_event)
    timer.start()
    timer.end(waited_s=2.0)
    timer.start()
    timer.end(waited_s=5.0)
    assert timer.take() == Times()  # the device has not started
    device.reaches(0, 3, 10)
    # 3 s until the first micro-batch started, 2 of them waiting for data.
    assert timer.take() == Times(total_s=10, device_s=7, data_wait_s=2)
    assert timer.take() == Times()
    device.reaches(11, 15)
    # The host waited for 5 s, but for 4 of them the device was still busy with the first micro-batch.
    assert timer.take() == Times(total_s=5, device_s=4, data_wait_s=1)


def test_what_came_before_a_restart_is_not_training():
    device = Device()
    timer = StepTimer(device.new_event)
    timer.restart()
    timer.start()
    timer.end(waited_s=0)
    device.reaches(0, 100, 101, 103)
    assert timer.take() == Times(total_s=3, device_s=2, data_wait_s=0)


def test_on_the_cpu_the_time_is_the_hosts():
    timer = StepTimer(HostEvent)
    timer.start()
    timer.end(waited_s=1e9)
    times = timer.take()
    assert 0 < times.device_s < times.total_s
    assert times.data_wait_s == pytest.approx(times.total_s - times.device_s)
