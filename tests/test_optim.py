import forked
import pytest
import torch
from corpus import random_texts, write_split
from lightning.pytorch import Callback, Trainer
from tiny import TINY_CONFIG
from torch import nn
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from w2v_lightning import LibriSpeechDataModule, Wav2Vec2CTC
from w2v_lightning.errors import InputError
from w2v_lightning.optim import parameter_groups, tri_stage

# ---- the schedule ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decay", "first_of_decay", "middle", "last_of_decay"),
    [
        ("exponential", 0.05 ** (1 / 40_000), 0.05**0.5, 0.05 ** (39_999 / 40_000)),
        ("linear", 1 - 0.95 / 40_000, (1 + 0.05) / 2, 0.05 + 0.95 / 40_000),
    ],
)
def test_tri_stage_at_every_edge_of_its_phases(decay, first_of_decay, middle, last_of_decay):
    factor = tri_stage(80_000, warmup=0.1, hold=0.4, final_lr_scale=0.05, decay=decay)
    assert factor(0) == 0.01
    assert factor(4_000) == pytest.approx(0.505)
    assert factor(7_999) == pytest.approx(1 - 0.99 / 8_000, rel=1e-12)
    assert factor(8_000) == factor(39_999) == factor(40_000) == 1
    assert factor(40_001) == pytest.approx(first_of_decay, rel=1e-12)
    assert factor(60_000) == pytest.approx(middle)
    assert factor(79_999) == pytest.approx(last_of_decay, rel=1e-12)
    assert factor(80_000) == pytest.approx(0.05)
    assert factor(1_000_000) == factor(80_000)


@pytest.mark.parametrize("decay", ["exponential", "linear"])
@pytest.mark.parametrize(("warmup", "hold"), [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (0.5, 0.5), (0.3, 0.0)])
@pytest.mark.parametrize("num_updates", [1, 2, 3, 7, 100])
def test_tri_stage_holds_for_any_phases(decay, warmup, hold, num_updates):
    factor = tri_stage(num_updates, warmup, hold, decay=decay)
    factors = [factor(update) for update in range(num_updates + 3)]
    assert all(0.01 <= factor <= 1 for factor in factors)
    top = factors.index(max(factors))
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)


@pytest.mark.parametrize(
    "arguments",
    [(0.6, 0.6, 0.05), (-0.1, 0.4, 0.05), (0.1, 0.4, 0.0), (0.1, 0.4, 1.5), (0.1, 0.4, 0.05, "cosine")],
)
def test_an_impossible_schedule_is_refused(arguments):
    with pytest.raises(InputError, match=r"model\."):
        tri_stage(100, *arguments)


# ---- parameter groups -----------------------------------------------------------------------------------------------


def test_weight_decay_spares_biases_norms_and_frozen_parameters():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[2].requires_grad_(False)
    decayed, spared = parameter_groups(model, 0.1, 3e-5)
    assert decayed == {"name": "all/weights", "params": [model[0].weight], "lr": 3e-5, "weight_decay": 0.1}
    assert [id(p) for p in spared["params"]] == [id(p) for p in (model[0].bias, model[1].weight, model[1].bias)]
    assert spared["weight_decay"] == 0
    torch.optim.AdamW([decayed, spared])


@pytest.mark.parametrize("is_pre_norm", [False, True])
def test_layers_further_down_learn_more_slowly(is_pre_norm):
    config = {**TINY_CONFIG, "num_hidden_layers": 11, "do_stable_layer_norm": is_pre_norm}  # 10 and 1 are not one layer
    model = Wav2Vec2ForCTC(Wav2Vec2Config(**config))
    groups = parameter_groups(model, 0.1, 1.0, layer_lr_decay=0.5)
    groups_of = {id(parameter): group for group in groups for parameter in group["params"]}
    assert len({group["name"] for group in groups}) == len(groups)
    assert sum(len(group["params"]) for group in groups) == len(groups_of) == len(list(model.parameters()))

    def lr_of(name):
        (lr,) = {groups_of[id(p)]["lr"] for p in model.get_submodule(name).parameters()}
        return lr

    assert lr_of("lm_head") == lr_of("wav2vec2.encoder.layers.10") == 1
    assert [lr_of(f"wav2vec2.encoder.layers.{i}") for i in range(11)] == [0.5 ** (10 - i) for i in range(11)]
    below = [f"wav2vec2.{name}" for name in ("feature_extractor", "feature_projection", "encoder.pos_conv_embed")]
    assert {lr_of(name) for name in below} == {0.5**11} == {groups_of[id(model.wav2vec2.masked_spec_embed)]["lr"]}
    assert lr_of("wav2vec2.encoder.layer_norm") == (1 if is_pre_norm else 0.5**11)
    assert groups[0]["lr"] == 1  # the group whose learning rate is logged
    for parameter in model.parameters():
        assert groups_of[id(parameter)]["weight_decay"] == (0.1 if parameter.ndim > 1 else 0)


@pytest.mark.parametrize("layer_lr_decay", [0.0, -0.5, 1.5])
def test_an_impossible_layer_lr_decay_is_refused(layer_lr_decay):
    with pytest.raises(InputError, match=r"model\.layer_lr_decay"):
        parameter_groups(nn.Linear(2, 2), 0.0, 1.0, layer_lr_decay)


# ---- in a run -------------------------------------------------------------------------------------------------------


class Recorder(Callback):
    """Record the learning rates by group and the encoder's weights, and save a checkpoint, after each update."""

    def __init__(self, folder):
        self.folder, self.rates, self.encoders, self.paths = folder, [], [], []

    def on_train_start(self, trainer, pl_module):
        self._record(trainer, pl_module)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append({group["name"]: group["lr"] for group in optimizer.param_groups})

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch.is_last_of_step:
            self._record(trainer, pl_module)

    def _record(self, trainer, pl_module):
        self.encoders.append([p.detach().clone() for p in pl_module.model.wav2vec2.parameters()])
        self.paths.append(self.folder / f"{trainer.global_step}.ckpt")
        trainer.save_checkpoint(self.paths[-1])


class Module(Wav2Vec2CTC):
    """Record which parameters have a gradient after the backward passes of each update."""

    def on_train_start(self):
        self.with_gradient = {}

    def on_after_backward(self):
        names = {name for name, p in self.model.named_parameters() if p.grad is not None}
        self.with_gradient.setdefault(self.global_step, set()).update(names)
        super().on_after_backward()


OPTIONS = {
    "layerdrop": 0.0, "activation_dropout": 0.0, "warmup": 0.25, "hold": 0.25, "learning_rate": 1e-2,
    "adam_eps": 1e-3,  # so that gradients of pure rounding errors, such as those of the keys' bias, move nothing
}  # fmt: skip


def run(tmp_path, ckpt_path=None, devices=1, strategy="auto", **options):
    """Run four updates of two or more micro-batches each; the encoder is frozen in the first two."""
    folder = tmp_path / ("resumed" if ckpt_path else "whole")
    folder.mkdir(exist_ok=True)
    if not (tmp_path / "corpus").exists():
        write_split(tmp_path / "corpus", "train", random_texts(24, seed=1))
    torch.manual_seed(0)
    module = Module(
        None, TINY_CONFIG, freeze_feature_encoder=False, freeze_updates=2, weight_decay=0.1, **OPTIONS, **options
    )
    recorder = Recorder(folder)
    data = LibriSpeechDataModule(
        str(tmp_path / "corpus"), ["train"], [], batch_seconds=20, device_seconds=5, num_workers=0
    )
    trainer = Trainer(
        max_steps=4, accelerator="cpu", devices=devices, strategy=strategy, callbacks=[recorder], logger=False,
        default_root_dir=folder, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    assert trainer.accumulate_grad_batches > 1
    return module, recorder, trainer


def same(encoder, other):
    return all(torch.equal(a, b) for a, b in zip(encoder, other, strict=True))


def test_phases_count_updates_not_micro_batches_for_every_group_also_while_frozen(tmp_path):
    _, recorder, _ = run(tmp_path, decay="linear", layer_lr_decay=0.5)
    heads, lowest = ([rates[f"{part}/weights"] for rates in recorder.rates] for part in ("head", "below the layers"))
    assert heads == pytest.approx([1e-4, 1e-2, 1e-2, 1e-2 * 0.525])
    assert lowest == pytest.approx([rate / 4 for rate in heads])


def test_only_the_head_learns_in_the_first_updates(tmp_path):
    module, recorder, trainer = run(tmp_path)
    before, first, second, third, fourth = recorder.encoders
    assert same(before, first)
    assert same(before, second)
    assert not any(torch.equal(a, b) for a, b in zip(second, third, strict=True))
    assert not same(third, fourth)

    state = torch.load(recorder.paths[2], weights_only=True)
    head = list(module.model.lm_head.parameters())
    assert len(state["optimizer_states"][0]["state"]) == len(head)  # AdamW has no state for other parameters
    steps = {id(p): int(trainer.optimizers[0].state[p]["step"]) for p in module.model.parameters()}
    assert {steps[id(p)] for p in head} == {4}
    assert {steps[id(p)] for p in module.model.wav2vec2.parameters()} == {2}


def test_a_frozen_encoder_has_no_backward_pass(tmp_path):
    module, _, _ = run(tmp_path)
    head, everything = {"lm_head.weight", "lm_head.bias"}, {name for name, _ in module.model.named_parameters()}
    assert module.with_gradient == {0: head, 1: head, 2: everything, 3: everything}


@pytest.mark.parametrize("updates_before", [1, 2, 3])
def test_a_resumed_run_thaws_where_the_uninterrupted_one_does(tmp_path, updates_before):
    whole, recorder, _ = run(tmp_path)
    resumed, after, _ = run(tmp_path, ckpt_path=recorder.paths[updates_before])
    assert same(whole.parameters(), resumed.parameters())
    for encoder, expected in zip(after.encoders, recorder.encoders[updates_before:], strict=True):
        assert same(encoder, expected)


def run_on_two(folder):
    module, recorder, trainer = run(folder, devices=2, strategy="ddp")
    assert trainer.world_size == 2
    before, _, second, third, fourth = recorder.encoders
    assert same(before, second)
    assert not same(second, third)
    assert not same(third, fourth)
    if trainer.is_global_zero:
        torch.save(module.state_dict(), folder / "two.pt")


@pytest.mark.slow
def test_two_processes_thaw_as_one_does(tmp_path):
    whole, _, _ = run(tmp_path)
    processes = forked.start(tmp_path, run_on_two, tmp_path, ranks=2)
    assert forked.ended(processes, tmp_path) == [0, 0], forked.logs(tmp_path)
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(two[name], weight, rtol=1e-3, atol=1e-5, msg=name)
