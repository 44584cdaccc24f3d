"""CUDA graphs of the encoder in training: the host launches each layer by one call, not by hundreds of kernels.

Launching a short micro-batch takes the host longer than the GPU needs to compute it. Its forward and backward pass are
therefore recorded when its shape is first met, part by part (recording.py): all before the layers, each layer, all
after them. Dropped layers, hooks on gradients, exchanges between devices and accumulation work as without.

The recorded kernels are those that run without graphs, on the same values, and dropout draws from torch's generator as
it does there. Only the packed layers compute some more rows, because a recording has a fixed number of them.

Shapes: B utterances, T samples, F frames, C channels, N packed frames.
"""

import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import Wav2Vec2Model

from w2v_lightning.compat.torch import FSDPModule
from w2v_lightning.data.batch import round_to_few_sizes
from w2v_lightning.data.trial import is_out_of_memory
from w2v_lightning.errors import InputError
from w2v_lightning.model.encoder import after_layers, projected, real_frames, with_positions
from w2v_lightning.model.features import conv_features, output_dtype
from w2v_lightning.model.layers import Bounds, EncoderLayer, Packing, transformer_layer
from w2v_lightning.model.recording import CudaRecorder, Part, Recorder, Recording, Workspace, warm_up
from w2v_lightning.model.speed import Speed, to_device

log = logging.getLogger(__name__)

BUFFERS_PER_OCTAVE = 1  # sizes of buffers: few, because a larger one makes all recordings void
POOL_MARGIN = 1.1  # of the first recording's memory: other shapes need about as much
ROWS_PER_OCTAVE = 32  # numbers of packed frames between a number and its double
MAX_FRAMES = 32_000  # with more, the GPU takes longer to compute than the host to launch
MAX_RECORDINGS = 1000  # each costs memory of the GPU and the host; what the shapes of a corpus need is far less


class Inputs(NamedTuple):
    """Input of the encoder."""

    waveforms_BT: Tensor  # float32, padded with 0
    num_samples_B: Tensor  # int64, on the CPU
    num_frames_B: Tensor  # int64, on the CPU
    num_frames: int  # F, padding included
    time_mask_BF: Tensor | None
    channel_mask_BC: Tensor | None


class Shape(NamedTuple):
    """Description of all that a recording depends on."""

    num_utterances: int
    num_samples: int
    num_frames: int
    num_rows: int  # of the layers
    is_packed: bool
    has_time_mask: bool
    has_channel_mask: bool
    dtype: torch.dtype  # of the values between the parts


@dataclass
class Statistics:
    """Use of graphs in a run."""

    recorded_shapes: int = 0
    recording_s: float = 0.0
    replays: int = 0
    without: dict[str, int] = field(default_factory=dict)  # number of micro-batches by the reason


class Graphs:
    """Graphs of one model, one recording for each shape of micro-batch.

    Args:
        wav2vec2: transformers' model without head.
        speed: implementations of the costly parts; its `graphs` says whether to record at all.
        new_recorder: function that returns a recorder for a device, with a pool of some bytes.
    """

    def __init__(
        self,
        wav2vec2: Wav2Vec2Model,
        speed: Speed,
        new_recorder: Callable[[torch.device, int], Recorder] = CudaRecorder,
    ) -> None:
        self.wav2vec2, self.speed, self.new_recorder = wav2vec2, speed, new_recorder
        self.statistics = Statistics()
        self._memory: _Memory | None = None

    def __reduce__(self) -> tuple[type["Graphs"], tuple[object, ...]]:
        """Copies begin without recordings."""
        return type(self), (self.wav2vec2, self.speed, self.new_recorder)

    def clear(self) -> None:
        """Drop all recordings and free their memory."""
        self._memory = None
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def hidden(self, inputs: Inputs, dropped_layers: Collection[int]) -> Tensor | None:
        """Return the transformer's output (B, F, C) by a replay; None if this micro-batch is to be computed without.

        Args:
            inputs: input of the encoder.
            dropped_layers: layers that are skipped in this pass.

        Raises:
            InputError: graphs are requested but not possible.
        """
        reason = self._reason_without(inputs)
        if reason is None:
            memory, shape = self._memory_for(inputs), self._shape(inputs)
            if shape in memory.recordings or len(memory.recordings) < MAX_RECORDINGS:
                return self._replay(memory, shape, inputs, dropped_layers)
            reason = "too many shapes"
        self.statistics.without[reason] = self.statistics.without.get(reason, 0) + 1
        return None

    def _reason_without(self, inputs: Inputs) -> str | None:
        """Return why this micro-batch is not recorded; None if it may be."""
        choice, encoder = self.speed.graphs, self.wav2vec2.encoder
        if choice is False:
            return "model.speed.graphs=false"
        if not torch.is_grad_enabled():
            return "the encoder is not trained"
        obstacle = None
        if self.new_recorder is CudaRecorder and inputs.waveforms_BT.device.type != "cuda":
            obstacle = "CUDA graphs need a GPU"
        elif isinstance(encoder.layers[0], FSDPModule):
            obstacle = "weights are sharded"
        elif getattr(encoder.layers[0], "gradient_checkpointing", False):
            obstacle = "gradient checkpointing computes layers again"
        if choice is True and obstacle:
            raise InputError(f"model.speed.graphs=true: {obstacle}; set it to auto or false.")
        if choice == "auto" and inputs.num_frames_B.sum() > MAX_FRAMES:
            return "long micro-batch"
        if obstacle and inputs.waveforms_BT.device.type == "cuda" and obstacle not in self.statistics.without:
            log.info("Kernels are launched one by one, without CUDA graphs: %s.", obstacle)
        return obstacle

    def _shape(self, inputs: Inputs) -> Shape:
        num_utterances, num_samples = inputs.waveforms_BT.shape
        device, num_rows = inputs.waveforms_BT.device, num_utterances * inputs.num_frames
        dtype = output_dtype(inputs.waveforms_BT)
        is_packed = self.speed.packs(device, dtype, self.wav2vec2.encoder)
        if is_packed:
            num_rows = min(num_rows, round_to_few_sizes(int(inputs.num_frames_B.sum()), ROWS_PER_OCTAVE))
        has_masks = inputs.time_mask_BF is not None, inputs.channel_mask_BC is not None
        return Shape(num_utterances, num_samples, inputs.num_frames, num_rows, is_packed, *has_masks, dtype)

    def _memory_for(self, inputs: Inputs) -> "_Memory":
        """Return the memory of the recordings; a new one, without any, if it is too small or weights have moved."""
        num_values = len(inputs.waveforms_BT) * inputs.num_frames * self.wav2vec2.config.hidden_size
        if self._memory is None or not self._memory.serves(inputs.waveforms_BT, num_values):
            self.clear()
            self._memory = _Memory(self.wav2vec2, inputs.waveforms_BT, num_values, self.new_recorder)
        return self._memory

    def _replay(self, memory: "_Memory", shape: Shape, inputs: Inputs, dropped_layers: Collection[int]) -> Tensor:
        fixed = memory.inputs(shape, inputs)
        if shape not in memory.recordings:
            started = time.perf_counter()
            try:
                memory.record(shape, self._parts(shape, fixed))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                torch.cuda.empty_cache()  # torch does this itself, but not while it records
                memory.record(shape, self._parts(shape, fixed))
            self.statistics.recorded_shapes += 1
            self.statistics.recording_s += time.perf_counter() - started
        self.statistics.replays += 1
        return memory.recordings[shape](skipped={1 + layer for layer in dropped_layers})

    def _parts(self, shape: Shape, inputs: Inputs) -> list[Part]:
        """Return the functions of the encoder: all before the layers, each layer, all after them."""
        wav2vec2, speed = self.wav2vec2, self.speed
        bounds, packing = Bounds(), None

        def before_layers(_: Tensor | None) -> Tensor:
            nonlocal bounds, packing
            is_real_BF = real_frames(inputs.num_frames_B, shape.num_frames)
            features_BFC = conv_features(wav2vec2, inputs.waveforms_BT, inputs.num_samples_B, speed)
            hidden_BFC, _ = projected(wav2vec2, features_BFC, inputs.time_mask_BF, inputs.channel_mask_BC, speed)
            hidden_BFC = with_positions(wav2vec2, hidden_BFC, is_real_BF, speed)
            if not shape.is_packed:
                bounds = Bounds(is_real_BF[:, None, None])
                return hidden_BFC
            max_spare = shape.num_rows // ROWS_PER_OCTAVE + 1
            packing = Packing.of_size(inputs.num_frames_B, shape.num_frames, shape.num_rows, max_spare)
            bounds = packing.bounds
            return packing.pack(hidden_BFC)

        def layer(layer: EncoderLayer, hidden_XC: Tensor | None) -> Tensor:
            assert hidden_XC is not None
            return transformer_layer(layer, hidden_XC, bounds, speed)

        def after(hidden_XC: Tensor | None) -> Tensor:
            assert hidden_XC is not None
            return after_layers(wav2vec2, hidden_XC if packing is None else packing.unpack(hidden_XC))

        layers = cast(Sequence[EncoderLayer], wav2vec2.encoder.layers)
        return [before_layers, *(partial(layer, each) for each in layers), after]


class _Memory:
    """Recordings, and memory that they share: buffers outside of their pool, for the largest of them.

    Args:
        wav2vec2: transformers' model without head.
        waveforms_BT: first input.
        num_values: elements of the output for it.
        new_recorder: function that returns a recorder for a device, with a pool of some bytes.
    """

    def __init__(
        self,
        wav2vec2: Wav2Vec2Model,
        waveforms_BT: Tensor,
        num_values: int,
        new_recorder: Callable[[torch.device, int], Recorder],
    ) -> None:
        self.recordings: dict[Shape, Recording] = {}
        self.parameters = trained_parameters(wav2vec2)
        flat = [parameter for of_part in self.parameters for parameter in of_part]
        self.workspace = Workspace(flat)
        self._new_recorder = new_recorder
        self.recorder = new_recorder(waveforms_BT.device, 0)
        self._addresses = [parameter.data_ptr() for parameter in flat]
        num_samples = round_to_few_sizes(waveforms_BT.numel(), BUFFERS_PER_OCTAVE)
        num_values = round_to_few_sizes(num_values, BUFFERS_PER_OCTAVE)
        self._num_channels = wav2vec2.config.hidden_size
        self._waveforms = waveforms_BT.new_zeros(num_samples)
        self._output = waveforms_BT.new_zeros(num_values, dtype=output_dtype(waveforms_BT))
        self._output_gradient = torch.zeros_like(self._output)
        self._inputs: dict[Shape, tuple[Tensor, Inputs]] = {}  # with the counts, as one tensor

    def serves(self, waveforms_BT: Tensor, num_values: int) -> bool:
        """Return False if the buffers are too small or of another type, or if weights have moved."""
        fits = waveforms_BT.numel() <= len(self._waveforms) and num_values <= len(self._output)
        is_same = (waveforms_BT.dtype, output_dtype(waveforms_BT)) == (self._waveforms.dtype, self._output.dtype)
        return fits and is_same and self._addresses == [p.data_ptr() for p in self.workspace.gradients]

    def inputs(self, shape: Shape, inputs: Inputs) -> Inputs:
        """Copy the inputs to where the recording of this shape reads them, and return those."""
        if shape not in self._inputs:
            device = self._waveforms.device
            counts_2B = torch.empty(2, shape.num_utterances, dtype=torch.int64, device=device)
            waveforms_BT = self._waveforms[: inputs.waveforms_BT.numel()].view_as(inputs.waveforms_BT)
            masks = _like(inputs.time_mask_BF), _like(inputs.channel_mask_BC)
            fixed = Inputs(waveforms_BT, counts_2B[0], counts_2B[1], inputs.num_frames, *masks)
            self._inputs[shape] = counts_2B, fixed
        counts_2B, fixed = self._inputs[shape]
        fixed.waveforms_BT.copy_(inputs.waveforms_BT)
        counts_2B.copy_(to_device(torch.stack([inputs.num_samples_B, inputs.num_frames_B]), counts_2B.device))
        for mask, values in zip(fixed[-2:], inputs[-2:], strict=True):
            if mask is not None and values is not None:
                mask.copy_(values)
        return fixed

    def record(self, shape: Shape, parts: Sequence[Part]) -> None:
        """Record a shape that is new."""
        recording = self._recording(shape, parts)
        if not self.recordings and (num_bytes := self.recorder.allocated_bytes()):
            del recording, self.recorder
            torch.cuda.empty_cache()
            self.recorder = self._new_recorder(self._output.device, round(POOL_MARGIN * num_bytes))
            recording = self._recording(shape, parts)
        self.recordings[shape] = recording

    def _recording(self, shape: Shape, parts: Sequence[Part]) -> Recording:
        num_values = shape.num_utterances * shape.num_frames * self._num_channels
        output, output_gradient = (
            buffer[:num_values].view(shape.num_utterances, shape.num_frames, -1)
            for buffer in (self._output, self._output_gradient)
        )
        layers = range(1, len(parts) - 1)
        with self.recorder.warming_up():
            warm_up([parts[0], parts[1], parts[-1]], self.parameters)  # layers differ only in their weights
        with self.recorder.recording():
            return Recording(parts, self.parameters, layers, output, output_gradient, self.workspace, self.recorder)


def _like(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else torch.empty_like(mask)


def trained_parameters(wav2vec2: Wav2Vec2Model) -> list[list[nn.Parameter]]:
    """Return the parameters that need gradients of each part: all before the layers, each layer, all after them."""
    encoder = wav2vec2.encoder
    of_layers = [list(layer.parameters()) for layer in encoder.layers]
    after = list(encoder.layer_norm.parameters()) if wav2vec2.config.do_stable_layer_norm else []
    others = {id(parameter) for parameters in (*of_layers, after) for parameter in parameters}
    before = [parameter for parameter in wav2vec2.parameters() if id(parameter) not in others]
    return [[p for p in parameters if p.requires_grad] for parameters in (before, *of_layers, after)]
