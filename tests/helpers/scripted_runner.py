"""A place where cells run by a clock of its own, and a crash of the command at any moment."""

import secrets
from collections import Counter

from w2v_lightning.study import collect
from w2v_lightning.study.queue import LostError, NoCapacityError, instances

POLL_S = 10.0


class Crash(BaseException):
    """In the place of SIGKILL: nothing catches it."""


class Clock:
    """In the place of the module `time`."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class Cloud:
    """What outlives the command: jobs by name, with the cell and when each began; and how it treats them.

    Args:
        clock: a Clock.
        durations: of cells by name, in seconds; else 100.
        refusals: how many starts of a cell are refused, by name.
    """

    def __init__(self, clock, durations=None, refusals=None):
        self.clock = clock
        self.durations = durations or {}
        self.refusals = Counter(refusals or {})
        self.outcomes = {}  # by name; else it finishes
        self.jobs = {}
        self.most = 0  # instances at once
        self.starts = []  # (seconds, run) of all that were tried

    def ends_at(self, job):
        cell, began = self.jobs[job]
        return began + self.durations.get(cell.name, 100.0)

    def start(self, job, cell):
        self.starts.append((self.clock.now, cell.run))
        if self.refusals[cell.name] > 0:
            self.refusals[cell.name] -= 1
            raise NoCapacityError("no such instances are free")
        self.jobs[job] = cell, self.clock.now
        at_once = sum(instances(cell) for job, (cell, _) in self.jobs.items() if self.ends_at(job) > self.clock.now)
        self.most = max(self.most, at_once)


class Runner:
    """Of one life of the command, which ends with a Crash after so many calls."""

    poll_s = POLL_S

    def __init__(self, cloud, crash_after=None):
        self.cloud = cloud
        self.calls_left = crash_after

    def _call(self):
        if self.calls_left == 0:
            raise Crash
        if self.calls_left is not None:
            self.calls_left -= 1

    def plan(self, cell):
        return {"job": secrets.token_hex(4), "run": cell.run, "region": "eu-west-1"}

    def start(self, cell, folder, handle):
        self._call()
        self.cloud.start(handle["job"], cell)
        self._call()
        return handle | {"is_known": True}

    def poll(self, cell, folder, handle):
        self._call()
        if handle["job"] not in self.cloud.jobs:
            raise LostError("it was not submitted")
        if self.cloud.ends_at(handle["job"]) > self.cloud.clock.now:
            return None
        return run(cell, self.cloud.outcomes.get(cell.name, "finished"))

    def given_up(self, cell, folder, outcome):
        return run(cell, outcome)


def run(cell, outcome="finished"):
    return collect.no_run(cell, "local", outcome)
