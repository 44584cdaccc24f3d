"""Training with CUDA graphs and without: `W2V_TEST_GPUS=0 pytest -n 0 -m gpu tests/gpu/test_graphs_cuda.py`."""

import pytest
import torch
from corpus import random_texts, write_split
from lightning.pytorch import Callback, Trainer
from tiny import TINY_CONFIG

from w2v_lightning import LibriSpeechDataModule, Wav2Vec2CTC
from w2v_lightning.callbacks.averaging import MovingAverage
from w2v_lightning.data.augment import Augmentation
from w2v_lightning.model.lora import Lora
from w2v_lightning.model.speed import Speed

pytestmark = pytest.mark.gpu

CONFIG = TINY_CONFIG | {"num_hidden_layers": 4, "hidden_size": 64, "attention_dropout": 0.0, "conv_bias": True}
OPTIONS = {"layerdrop": 0.3, "hidden_dropout": 0.1, "activation_dropout": 0.1, "feat_proj_dropout": 0.1, "warmup": 0.0}
STEPS = 8


@pytest.fixture(autouse=True)
def needs_cuda():
    assert torch.cuda.is_available(), "run with W2V_TEST_GPUS=0 on a machine with a GPU"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    write_split(root, "train", random_texts(80, seed=1, longest=20), speaker="1")
    write_split(root, "dev", random_texts(10, seed=2), speaker="2")
    return root


class Steps(Callback):
    """Record of the loss of each step and of the gradient of the first one, clipped."""

    def __init__(self):
        self.losses, self.gradient = [], None

    def on_before_zero_grad(self, trainer, module, optimizer):
        if self.gradient is None and trainer.global_step == 1:
            gradients = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
            self.gradient = torch.cat(gradients).double() if gradients else None

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch.is_last_of_step:
            self.losses.append(float(trainer.callback_metrics["train_loss"]))


def train(
    corpus,
    folder,
    graphs,
    precision="bf16-mixed",
    config=(),
    data=(),
    trainer=(),
    callbacks=(),
    ckpt_path=None,
    **options,
):
    torch.manual_seed(0)
    config = CONFIG | dict(config)
    module = Wav2Vec2CTC(None, config, speed=Speed(graphs=graphs), learning_rate=1e-3, **(OPTIONS | options))
    settings = {"batch_seconds": 20, "device_seconds": 9, "num_workers": 0}
    datamodule = LibriSpeechDataModule(str(corpus), ["train"], ["dev"], **(settings | dict(data)))
    steps = Steps()
    settings = {"max_steps": STEPS, "log_every_n_steps": 1, "gradient_clip_val": 1.0, "val_check_interval": 3}
    fit = Trainer(
        accelerator="gpu", devices=1, precision=precision, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=folder, num_sanity_val_steps=0,
        callbacks=[steps, *callbacks], **(settings | dict(trainer)),
    )  # fmt: skip
    fit.fit(module, datamodule=datamodule, ckpt_path=ckpt_path)
    return steps, module, fit


def assert_same_run(run, expected, tolerance):
    assert len(run.losses) == len(expected.losses)
    if tolerance == 0:
        assert run.losses == expected.losses
        assert run.gradient is None or torch.equal(run.gradient, expected.gradient)
        return
    assert run.losses == pytest.approx(expected.losses, rel=tolerance)
    if run.gradient is not None:
        assert torch.norm(run.gradient - expected.gradient) < tolerance * torch.norm(expected.gradient)


@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 0), ("16-mixed", 0.02), ("bf16-mixed", 0.05)])
@pytest.mark.parametrize(("pre_norm", "frozen"), [(False, True), (True, False)])
def test_the_same_losses_and_gradients(corpus, tmp_path, precision, tolerance, pre_norm, frozen):
    config = {"do_stable_layer_norm": pre_norm, "feat_extract_norm": "layer" if pre_norm else "group"}
    options = {"precision": precision, "config": config, "freeze_feature_encoder": frozen}
    runs = [train(corpus, tmp_path, graphs, **options) for graphs in (True, False)]
    statistics = runs[0][1].graphs.statistics
    assert statistics.replays > STEPS
    assert not statistics.without
    assert_same_run(runs[0][0], runs[1][0], max(tolerance, 0 if frozen else 1e-3))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"freeze_updates": 3}, id="frozen at first"),
        pytest.param({"lora": Lora(rank=4)}, id="LoRA"),
        pytest.param({"layer_lr_decay": 0.8}, id="learning rates by layer"),
        pytest.param({"mask_time_prob": 0.0, "mask_channel_prob": 0.0}, id="no masks"),
        pytest.param({"layerdrop": 0.0}, id="no layer drop"),
        pytest.param({"data": {"device_seconds": 20}}, id="one micro-batch"),
        pytest.param({"data": {"augmentation": Augmentation(speeds=(0.9, 1.0, 1.1))}}, id="changes of speed"),
        pytest.param({"callbacks": [MovingAverage(0.9)]}, id="average"),
        pytest.param({"trainer": {"gradient_clip_val": None}}, id="no clipping"),
    ],
)
def test_the_same_with(corpus, tmp_path, options):
    options = {"precision": "32-true", **options}
    runs = [train(corpus, tmp_path, graphs, **options) for graphs in (True, False)]
    assert runs[0][1].graphs.statistics.replays > 0
    assert_same_run(runs[0][0], runs[1][0], 0)


def test_without_where_layers_are_computed_again(corpus, tmp_path, caplog):
    _, module, _ = train(corpus, tmp_path, "auto", gradient_checkpointing=True)
    assert module.graphs.statistics.replays == 0
    assert list(module.graphs.statistics.without) == ["gradient checkpointing computes layers again"]


def test_a_resumed_run_ends_as_one_that_was_not_interrupted(corpus, tmp_path):
    whole, *_ = train(corpus, tmp_path, True, precision="32-true")
    checkpoint = tmp_path / "at.ckpt"

    class SaveAt(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.global_step == 3 and batch.is_last_of_step:
                trainer.save_checkpoint(checkpoint)

    train(corpus, tmp_path, True, precision="32-true", callbacks=[SaveAt()])
    resumed, *_ = train(corpus, tmp_path, True, precision="32-true", ckpt_path=checkpoint)
    assert resumed.losses == whole.losses[3:]


def test_skipped_steps_of_the_scaler(corpus, tmp_path):
    from lightning.pytorch.plugins import MixedPrecision

    def run(graphs):
        scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)
        plugin = MixedPrecision("16-mixed", "cuda", scaler)
        steps, module, _ = train(corpus, tmp_path, graphs, precision=None, trainer={"plugins": [plugin]})
        return steps, scaler.get_scale(), module

    with_graphs, scale, module = run(True)
    without, other_scale, _ = run(False)
    assert scale == other_scale < 2.0**40
    assert module.graphs.statistics.replays > 0
    assert with_graphs.losses == pytest.approx(without.losses, rel=0.02)
