"""Side of a comparison: timed passes over a workload, and the memory that they take."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from w2v_lightning.bench.stepper import Machine, Stepper
from w2v_lightning.bench.workload import Workload


@dataclass
class Memory:
    """GPU memory of one side, although the other sides' weights and optimiser states are on the same device.

    Between passes every side holds only what it keeps (gradients are freed), and the other sides are idle during a
    pass. So this side's peak is the peak of a pass, less what all sides held before it, plus what this side keeps.
    """

    machine: Machine
    kept_bytes: int = 0
    peak_bytes: int = 0
    _before_bytes: int = 0

    @property
    def peak_gib(self) -> float | None:
        return self.peak_bytes / 2**30 if self._is_gpu else None

    def before_build(self) -> None:
        self._before_bytes = self._allocated()

    def after_build(self) -> None:
        self.kept_bytes = self._allocated() - self._before_bytes

    def before_pass(self) -> None:
        self._before_bytes = self._allocated()
        if self._is_gpu:
            torch.cuda.reset_peak_memory_stats(self.machine.device)

    def after_pass(self) -> None:
        if self._is_gpu:
            peak = torch.cuda.max_memory_allocated(self.machine.device) - self._before_bytes + self.kept_bytes
            self.peak_bytes = max(self.peak_bytes, peak)

    def _allocated(self) -> int:
        return torch.cuda.memory_allocated(self.machine.device) if self._is_gpu else 0

    @property
    def _is_gpu(self) -> bool:
        return self.machine.device.type == "cuda"


@dataclass
class Passes:
    """Measurements of one side on one workload."""

    side: str
    group: str  # sides of a group were timed in turn with each other
    workload: Workload
    memory: Memory
    warm_up_s: float = 0.0
    seconds: list[float] = field(default_factory=list)  # duration of each pass over the workload

    def begin(self) -> None:
        self.memory.before_pass()
        self.memory.machine.synchronize()
        self._start_s = time.perf_counter()

    def end(self) -> None:
        self.memory.machine.synchronize()
        self.seconds.append(time.perf_counter() - self._start_s)
        self.memory.after_pass()


class Side:
    """A model that takes optimiser steps: built and warmed up here, then timed one pass at a time.

    Args:
        name: name in the table.
        build: function that builds the model and its optimiser.
        machine: device to compute on, and precision.
    """

    def __init__(self, name: str, build: Callable[[], Stepper], machine: Machine):
        self.name = name
        self.machine = machine
        self.memory = Memory(machine)
        self.memory.before_build()
        self.stepper = build()

    def passes(self, group: str, workload: Workload) -> Passes:
        """Warm up over all shapes, and return the Passes to time.

        Shapes run twice, because torch.compile compiles again with dynamic sizes when it meets a second shape.
        """
        start_s = time.perf_counter()
        for _ in range(2):
            self.run(workload)
        self.machine.synchronize()
        if not self.memory.kept_bytes:
            self.memory.after_build()
        warm_up_s = time.perf_counter() - start_s
        return Passes(self.name, group, workload, Memory(self.machine, self.memory.kept_bytes), warm_up_s)

    def time(self, passes: Passes) -> None:
        passes.begin()
        self.run(passes.workload)
        passes.end()

    def run(self, workload: Workload) -> None:
        for step in workload.steps:
            self.stepper.step(step)
