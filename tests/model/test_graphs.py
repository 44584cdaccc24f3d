"""A step that is recorded and replayed, with the same numbers as one that is computed as usual.

Without a GPU, a recording is the function itself, called again: all is tested but the graphs, as which
tests/gpu/test_graphs_cuda.py records them.
"""

import copy
import itertools
from contextlib import contextmanager

import pytest
import torch
from tiny import TINY_CONFIG
from torch import nn

from w2v_lightning.errors import InputError
from w2v_lightning.model import wav2vec2
from w2v_lightning.model.graphs import ROWS_PER_OCTAVE, Graphs
from w2v_lightning.model.layers import Packing
from w2v_lightning.model.lora import Lora, add_lora
from w2v_lightning.model.speed import Speed
from w2v_lightning.text.vocabulary import Vocabulary

LAYERS = 3
DROPOUT = {"hidden_dropout": 0.1, "feat_proj_dropout": 0.1, "activation_dropout": 0.1, "attention_dropout": 0.1}
CONFIG = TINY_CONFIG | DROPOUT | {"num_hidden_layers": LAYERS, "layerdrop": 0.0}


class CallAgain:
    """Recorder whose replays call the function again; as a CUDA graph, it changes no gradient when it is recorded."""

    def __init__(self, model):
        self.model = model

    def __call__(self, function):
        function()
        return function

    def warming_up(self):
        return torch.random.fork_rng([])

    @contextmanager
    def recording(self):
        gradients = [(p.grad, p.grad.clone()) for p in self.model.parameters() if p.grad is not None]
        with torch.random.fork_rng([]):
            yield
        for gradient, values in gradients:
            gradient.copy_(values)

    def allocated_bytes(self):
        return 0


def build(freeze_feature_encoder=True, **config):
    torch.manual_seed(0)
    model = wav2vec2.from_scratch(CONFIG | config, Vocabulary()).train()
    wav2vec2.freeze(model, feature_encoder=freeze_feature_encoder)
    return model


def graphs_of(model, **speed):
    return Graphs(model.wav2vec2, Speed(**{"graphs": "auto"} | speed), lambda *_: CallAgain(model))


def micro_batch(number, seconds=(0.5, 0.4, 0.31), masked=True):
    generator = torch.Generator().manual_seed(number)
    num_samples_B = torch.tensor([int(16_000 * s) for s in seconds])
    waveforms_BT = torch.zeros(len(seconds), int(num_samples_B.max()))
    for waveform_T, count in zip(waveforms_BT, num_samples_B.tolist(), strict=True):
        waveform_T[:count] = torch.randn(count, generator=generator)
    num_frames = wav2vec2._frames(wav2vec2.from_scratch(CONFIG, Vocabulary()).config).num_frames(waveforms_BT.shape[1])
    masks = [torch.rand(len(seconds), size, generator=generator) < 0.3 for size in (num_frames, CONFIG["hidden_size"])]
    return waveforms_BT, num_samples_B, *(masks if masked else (None, None))


def gradients(model, graphs, batches, dropped=(), seed=0):
    """Sum of losses and accumulated gradients of some micro-batches, as in one step of Lightning."""
    model.zero_grad(set_to_none=True)
    losses = []
    for number, batch in enumerate(batches):
        torch.manual_seed(seed + number)
        dropped_layers = dropped[number] if dropped else ()
        logits_BFV = wav2vec2.ctc_logits(model, *batch, dropped_layers=dropped_layers, graphs=graphs)
        if number == 0:
            model.zero_grad(set_to_none=True)  # Lightning does it between forward and backward
        loss = logits_BFV.float().log_softmax(-1)[..., 3:7].square().mean()
        loss.backward()
        losses.append(loss.item())
    return losses, {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def assert_same(outcome, expected):
    assert outcome[0] == expected[0]
    assert outcome[1].keys() == expected[1].keys()
    for name, gradient in outcome[1].items():
        other = expected[1][name]
        assert (gradient is None) == (other is None), name
        assert gradient is None or torch.equal(gradient, other), name


@pytest.mark.parametrize("norm", ["layer", "group"])
@pytest.mark.parametrize("pre_norm", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_replays_give_the_same_losses_and_gradients(norm, pre_norm, frozen):
    config = {"feat_extract_norm": norm, "do_stable_layer_norm": pre_norm, "conv_bias": True}
    model = build(frozen, **config)
    graphs = graphs_of(model)
    batches = [micro_batch(n, seconds) for n, seconds in enumerate([(0.6, 0.3, 0.2), (0.5, 0.4), (0.5, 0.3)])]
    for seed in range(3):
        expected = gradients(model, None, batches, seed=seed)
        assert_same(gradients(model, graphs, batches, seed=seed), expected)
    assert graphs.statistics.recorded_shapes == 2
    assert graphs.statistics.replays == 3 * 3
    assert graphs.statistics.without == {}


def test_dropped_layers_pass_their_input_on():
    model = build()
    graphs = graphs_of(model)
    batch = micro_batch(0)
    gradients(model, graphs, [batch, batch])
    for dropped in [(0,), (LAYERS - 1,), (0, 1), tuple(range(LAYERS)), (), (1,)]:
        assert_same(gradients(model, graphs, [batch], [dropped]), gradients(model, None, [batch], [dropped]))


def test_micro_batches_of_one_step_may_drop_different_layers_and_be_without_recording(monkeypatch):
    monkeypatch.setattr("w2v_lightning.model.graphs.MAX_RECORDINGS", 1)
    model = build()
    graphs = graphs_of(model)
    batches = [micro_batch(0), micro_batch(1, (0.4,)), micro_batch(2), micro_batch(3, (0.4,))]
    dropped = [(0,), (1,), (), (2,)]
    for micro_batches in (batches, batches[::-1]):
        expected = gradients(model, None, micro_batches, dropped)
        assert_same(gradients(model, graphs, micro_batches, dropped), expected)
    assert graphs.statistics.replays == 4
    assert graphs.statistics.without == {"too many shapes": 4}


def test_a_parameter_without_gradient_keeps_none():
    model = build()
    graphs = graphs_of(model)
    batches = [micro_batch(0, masked=False)] * 2
    losses, by_name = gradients(model, graphs, batches)
    assert by_name["wav2vec2.masked_spec_embed"] is None  # AdamW would decay it
    assert_same((losses, by_name), gradients(model, None, batches))


def test_only_adapters_are_trained_with_lora():
    model = build()
    add_lora(model, Lora(rank=4))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    graphs = graphs_of(model)
    batches = [micro_batch(0)] * 3
    assert_same(gradients(model, graphs, batches), gradients(model, None, batches))
    assert graphs.statistics.replays == 3


def test_hooks_on_gradients_run_for_every_parameter_of_each_pass():
    model = build()
    graphs, batch = graphs_of(model), micro_batch(0)
    gradients(model, graphs, [batch, batch])
    passed = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "masked" not in name:
            accumulate = parameter.expand_as(parameter).grad_fn.next_functions[0][0]
            accumulate.register_hook(lambda *_, name=name: passed.append(name))
            parameter.accumulate = accumulate  # keeps the node alive
    gradients(model, graphs, [batch], [(1,)])
    assert sorted(passed) == sorted(n for n, p in model.named_parameters() if hasattr(p, "accumulate"))
    order = [int(name.split(".")[3]) for name in passed if "encoder.layers" in name]
    assert order == sorted(order, reverse=True)


def test_a_second_forward_pass_before_the_backward_pass_is_refused():
    model = build()
    graphs, batch = graphs_of(model), micro_batch(0)
    gradients(model, graphs, [batch])
    first = wav2vec2.ctc_logits(model, *batch, graphs=graphs)
    wav2vec2.ctc_logits(model, *batch, graphs=graphs)
    with pytest.raises(RuntimeError, match=r"model\.speed\.graphs"):
        first.sum().backward()


def test_weights_that_move_are_recorded_again():
    model = build()
    graphs, batch = graphs_of(model), micro_batch(0)
    gradients(model, graphs, [batch, batch])
    for parameter in model.parameters():
        parameter.data = parameter.data.clone() * 1.1
    assert_same(gradients(model, graphs, [batch]), gradients(model, None, [batch]))
    assert graphs.statistics.recorded_shapes == 2


def test_a_larger_micro_batch_gets_larger_buffers():
    model = build()
    graphs = graphs_of(model)
    batches = [micro_batch(0), micro_batch(1), micro_batch(2, (2.5, 2.2)), micro_batch(3, (2.5, 2.2)), micro_batch(4)]
    assert_same(gradients(model, graphs, batches), gradients(model, None, batches))
    assert graphs.statistics.recorded_shapes == 3  # the first one again


def test_reasons_to_compute_without():
    model, batch = build(), micro_batch(0)
    for graphs, reason in [
        (graphs_of(model, graphs=False), "model.speed.graphs=false"),
        (Graphs(model.wav2vec2, Speed(graphs="auto")), "CUDA graphs need a GPU"),
    ]:
        gradients(model, graphs, [batch] * 3)
        assert graphs.statistics.without == {reason: 3}
    with torch.no_grad():
        graphs = graphs_of(model)
        wav2vec2.ctc_logits(model, *batch, graphs=graphs)
    assert graphs.statistics.without == {"the encoder is not trained": 1}
    model.gradient_checkpointing_enable({"use_reentrant": False})
    gradients(model, graphs, [batch] * 3)
    assert graphs.statistics.without["gradient checkpointing computes layers again"] == 3
    with pytest.raises(InputError, match=r"model.speed.graphs=true: gradient checkpointing .* auto or false"):
        gradients(model, graphs_of(model, graphs=True), [batch])


def test_a_copy_has_no_recordings_and_its_own_weights():
    model = build()
    model.graphs, batch = graphs_of(model), micro_batch(0)
    gradients(model, model.graphs, [batch, batch])
    other = copy.deepcopy(model)
    assert other.graphs.wav2vec2 is other.wav2vec2
    assert other.graphs.statistics.replays == 0


@pytest.mark.parametrize("counts", [(7, 5, 6), (7, 7, 7), (1, 7, 1), (3,)])
def test_packed_rows_of_a_fixed_number(counts):
    longest, num_frames = max(counts) + 1, sum(counts)
    max_spare = 5
    counts_B = torch.tensor(counts)
    hidden_BFC = torch.randn(len(counts), longest, 4)
    usual = Packing.from_counts(counts_B, counts_B, longest)
    for size in range(num_frames, num_frames + max_spare + 1):
        packing = Packing.of_size(counts_B, longest, size, max_spare)
        packed_NC = packing.pack(hidden_BFC)
        assert torch.equal(packed_NC[:num_frames], usual.pack(hidden_BFC))
        assert torch.equal(packing.unpack(packed_NC), usual.unpack(usual.pack(hidden_BFC)))
        starts = packing.bounds.starts_B.tolist()
        assert starts[: len(counts) + 1] == usual.bounds.starts_B.tolist()
        assert starts[-1] == size
        assert max(b - a for a, b in itertools.pairwise(starts)) <= packing.bounds.longest


def test_packed_rows_that_are_left_over_have_no_gradient():
    counts_B = torch.tensor([3, 2])
    hidden_BFC = torch.randn(2, 4, 3, requires_grad=True)
    packing = Packing.of_size(counts_B, 4, 8, 3)
    packed_NC = packing.pack(hidden_BFC)
    packed_NC.retain_grad()
    packing.unpack(packed_NC).sum().backward()
    assert packed_NC.grad.abs().sum(dim=1).tolist() == [3.0] * 5 + [0.0] * 3
    assert hidden_BFC.grad.sum(dim=2).tolist() == [[3.0, 3.0, 3.0, 0.0], [3.0, 3.0, 0.0, 0.0]]


def test_sizes_leave_no_more_rows_over_than_the_packing_expects():
    from w2v_lightning.data.batch import round_to_few_sizes

    for number in range(1, 5000):
        size = round_to_few_sizes(number, ROWS_PER_OCTAVE)
        assert size - number <= size // ROWS_PER_OCTAVE + 1
