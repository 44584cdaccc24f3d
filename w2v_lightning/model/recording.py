"""Recording of a chain of functions, forward and backward, to replay it with few calls: on a GPU, as CUDA graphs.

Autograd sees one function for each part of the chain. So what hangs on gradients works as without a recording: hooks,
exchanges between devices while the backward pass runs, accumulation over micro-batches. A replay can skip a part.

What flows between the parts stays in the graphs' own memory, where each part finds it at the same address; between the
functions that autograd sees flow empty tensors. Nothing is kept alive after a recording, so all recordings share one
pool of memory: each is replayed as a whole, forward and backward, before another begins.

Source: torch.cuda.make_graphed_callables, which records functions whose inputs and outputs stay alive.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache, partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from w2v_lightning.compat.torch import add_, allocating_in, zero_

Function = Callable[[], object]
Part = Callable[[Tensor | None], Tensor]  # of the output of the part before it; the first one gets None


class Recorder(Protocol):
    """Function that calls a function, and returns one that does the same on the device again."""

    def __call__(self, function: Function) -> Function: ...

    def warming_up(self) -> AbstractContextManager[None]:
        """Return a context to run what will be recorded, so that all is compiled and allocated that is kept."""
        ...

    def recording(self) -> AbstractContextManager[None]:
        """Return a context to record in; it leaves no trace in the state of torch."""
        ...

    def allocated_bytes(self) -> int:
        """Return the size of the pool that the recordings share."""
        ...


class CudaRecorder:
    """Recorder of CUDA graphs, all in one pool of memory.

    Args:
        device: the GPU.
        num_bytes: size of the pool to begin with. It grows where needed, but memory that was taken piece by piece for
            one recording has gaps of the wrong sizes for another.
    """

    def __init__(self, device: torch.device, num_bytes: int = 0) -> None:
        self.device, self.stream = device, _recording_stream(device)
        self.pool: Any = torch.cuda.graph_pool_handle()
        with self.recording():
            value = torch.zeros(1, device=device)
            self._keeps_pool = self(value.zero_)
        if num_bytes:
            with self.warming_up():
                torch.empty(num_bytes, dtype=torch.uint8, device=device)  # freed at once, it stays in the pool

    def __call__(self, function: Function) -> Function:
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads continue, such as the one that pins the next batch.
        graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
        try:
            function()
        except BaseException:
            with suppress(RuntimeError):  # it says only that the recording has failed
                graph.capture_end()
            raise
        graph.capture_end()
        return graph.replay

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        with self.recording(), allocating_in(self.pool, self.device):
            yield

    @contextmanager
    def recording(self) -> Iterator[None]:
        current, generator_state = torch.cuda.current_stream(self.device), torch.cuda.get_rng_state(self.device)
        is_enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        self.stream.wait_stream(current)
        try:
            # A cached cast of a weight would not be recorded.
            with torch.cuda.stream(self.stream), torch.autocast("cuda", dtype, is_enabled, cache_enabled=False):
                yield
        finally:
            current.wait_stream(self.stream)
            torch.cuda.set_rng_state(generator_state, self.device)

    def allocated_bytes(self) -> int:
        segments = torch.cuda.memory_snapshot()
        return sum(segment["total_size"] for segment in segments if tuple(segment["segment_pool_id"]) == self.pool)


@cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """Return one stream for all recorders, because torch keeps the memory of each stream apart."""
    return torch.cuda.Stream(device)


class Workspace:
    """Memory that recordings share besides their pool: gradients at fixed addresses, and a count of passes.

    Args:
        parameters: the trained parameters.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.gradients = {parameter: torch.zeros_like(parameter) for parameter in parameters}
        self.num_passes = 0  # forward passes so far

    def attach(self, parameters: Sequence[nn.Parameter]) -> None:
        """Make `gradients` the gradients of `parameters`: with the values that these have, otherwise with zeros."""
        new = []
        for parameter in parameters:
            gradient = self.gradients[parameter]
            if parameter.grad is gradient:
                continue
            if parameter.grad is None:
                new.append(gradient)
            else:
                gradient.copy_(parameter.grad)
            parameter.grad = gradient
        if new:
            zero_(new)


class Recording:
    """Recording of a chain for one shape of its input.

    Args:
        parts: functions of the chain; each is called once, and computes on inputs that stay where they are.
        parameters: the trained parameters of each part.
        skippable: numbers of the parts that a replay can skip; the output of such a part has the shape of its input.
        output: buffer for the output of the last part.
        output_gradient: buffer for the gradient of that output.
        workspace: what the recordings share.
        record: recorder of each part's passes.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        parameters: Sequence[Sequence[nn.Parameter]],
        skippable: Collection[int],
        output: Tensor,
        output_gradient: Tensor,
        workspace: Workspace,
        record: Recorder,
    ) -> None:
        self.output, self.output_gradient, self.workspace = output, output_gradient, workspace
        chain = _Chain(parts, parameters, output, output_gradient, workspace)
        self.forward: dict[int, Function] = {}
        self.backward: dict[int, Function] = {}
        self.skip: dict[int, Function] = {}
        self.skip_backward: dict[int, Function] = {}
        for number in range(len(parts)):
            self.forward[number] = record(partial(chain.forward, number))
            if number in skippable:
                self.skip[number] = record(partial(chain.skip, number))
        for number in reversed(range(len(parts))):
            if chain.has_backward(number):
                self.backward[number] = record(partial(chain.backward, number))
            if number in skippable:
                self.skip_backward[number] = record(partial(chain.skip_backward, number))
            chain.free(number)
        self.parameters = chain.used  # of each part, those that have a gradient
        self._all_parameters = [parameter for of_part in self.parameters for parameter in of_part]

    def __call__(self, skipped: Collection[int]) -> Tensor:
        """Replay the chain without the `skipped` parts, and return the output.

        Its backward pass must come before the next forward pass of any recording, which overwrites it.
        """
        self.workspace.num_passes += 1
        token = self.output.new_empty(0)
        for number, parameters in enumerate(self.parameters):
            token = _Part.apply(token, self, number, number in skipped, *parameters)
        return _Output.apply(token, self)

    def begin_backward(self, output_gradient: Tensor) -> None:
        self.output_gradient.copy_(output_gradient)
        self.workspace.attach(self._all_parameters)


def warm_up(parts: Sequence[Part], parameters: Sequence[Sequence[nn.Parameter]]) -> None:
    """Run a chain once: kernels are compiled, and libraries allocate what they keep, before anything is recorded."""
    values = None
    with torch.enable_grad():
        for part in parts:
            values = part(values)
    assert values is not None
    trained = [parameter for of_part in parameters for parameter in of_part]
    torch.autograd.grad(values, trained, torch.zeros_like(values), allow_unused=True)


class _Chain:
    """Parts of a chain while they are recorded: what each pass computes, and what it leaves for the next one."""

    def __init__(
        self,
        parts: Sequence[Part],
        parameters: Sequence[Sequence[nn.Parameter]],
        output: Tensor,
        output_gradient: Tensor,
        workspace: Workspace,
    ) -> None:
        self.parts, self.parameters, self.output, self.workspace = parts, parameters, output, workspace
        self.inputs: list[Tensor | None] = [None for _ in parts]
        self.outputs: list[Tensor | None] = [None for _ in parts]
        self.gradients: list[Tensor | None] = [*(None for _ in parts[1:]), output_gradient]  # of the outputs
        self.used: list[list[nn.Parameter]] = [[] for _ in parts]

    def forward(self, number: int) -> None:
        with torch.enable_grad():
            if number > 0:
                self.inputs[number] = _of(self.outputs, number - 1).detach().requires_grad_()
            self.outputs[number] = output = self.parts[number](self.inputs[number])
        if number == len(self.parts) - 1:
            self.output.copy_(output.detach())

    def skip(self, number: int) -> None:
        _write(self.outputs, number, _of(self.outputs, number - 1))

    def has_backward(self, number: int) -> bool:
        return _of(self.outputs, number).requires_grad

    def backward(self, number: int) -> None:
        parameters, values = self.parameters[number], self.inputs[number]
        wanted = [*parameters] if values is None else [values, *parameters]
        output, output_gradient = _of(self.outputs, number), _of(self.gradients, number)
        gradients = [*torch.autograd.grad(output, wanted, output_gradient, allow_unused=True)]
        if values is not None:
            self.gradients[number - 1] = gradients.pop(0)
        pairs = [pair for pair in zip(parameters, gradients, strict=True) if pair[1] is not None]
        self.used[number] = [parameter for parameter, _ in pairs]
        if pairs:
            add_([self.workspace.gradients[parameter] for parameter, _ in pairs], [gradient for _, gradient in pairs])

    def skip_backward(self, number: int) -> None:
        _write(self.gradients, number - 1, _of(self.gradients, number))

    def free(self, number: int) -> None:
        """Free what only this part's backward pass has needed, for those of the parts before it."""
        self.inputs[number] = self.outputs[number] = None
        if number < len(self.parts) - 1:
            self.gradients[number] = None


def _of(tensors: Sequence[Tensor | None], number: int) -> Tensor:
    tensor = tensors[number]
    assert tensor is not None  # passes run in their order
    return tensor


def _write(tensors: list[Tensor | None], number: int, values: Tensor) -> None:
    """Write `values` where other passes expect the tensor of that number."""
    target = tensors[number]
    if target is None:
        tensors[number] = values.clone()
    else:
        target.data.copy_(values)  # behind autograd's back: the backward pass of what is overwritten will not run


class _Part(torch.autograd.Function):
    """Passes of one part. The parameters are inputs so that autograd runs what hangs on their gradients."""

    @staticmethod
    def forward(
        ctx: Any, token: Tensor, recording: Recording, number: int, is_skipped: bool, *parameters: nn.Parameter
    ) -> Tensor:
        ctx.recording, ctx.num_passes = recording, recording.workspace.num_passes
        ctx.replay = (recording.skip_backward if is_skipped else recording.backward).get(number)
        ctx.num_parameters = len(parameters)
        (recording.skip if is_skipped else recording.forward)[number]()
        return token.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, token: Tensor) -> tuple[Tensor | None, ...]:
        ctx.replay()
        return token, None, None, None, *(None for _ in range(ctx.num_parameters))


class _Output(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, token: Tensor, recording: Recording) -> Tensor:
        ctx.recording, ctx.num_passes = recording, recording.workspace.num_passes
        return recording.output.view_as(recording.output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if ctx.num_passes != ctx.recording.workspace.num_passes:
            raise RuntimeError(
                "With CUDA graphs, the backward pass of a micro-batch must come before the forward pass of the next:"
                " another one has overwritten its values. Set model.speed.graphs to false to keep several."
            )
        ctx.recording.begin_backward(gradient)
        return gradient.new_empty(0), None
