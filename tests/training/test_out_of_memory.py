"""A run that is out of memory ends like a run that had smaller batches from the start.

Memory is that of a module which raises where a micro-batch is larger than its device.
"""

import logging
import subprocess
import sys

import pytest
import torch
import yaml
from corpus import random_texts, write_split
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from tiny import TINY_CONFIG

from w2v_lightning import LibriSpeechDataModule, Wav2Vec2CTC
from w2v_lightning.__main__ import main
from w2v_lightning.callbacks.averaging import MovingAverage
from w2v_lightning.checkpoints import files
from w2v_lightning.data.batch import SAMPLE_RATE
from w2v_lightning.errors import InputError
from w2v_lightning.training import out_of_memory

EPOCHS = 2
NUM_VALIDATED = 20  # in several batches


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    cache = pytest.MonkeyPatch()
    cache.setenv("W2V_LIGHTNING_CACHE", str(root / "cache"))
    write_split(root, "train", random_texts(30, seed=1), speaker="1")
    write_split(root, "dev", random_texts(NUM_VALIDATED, seed=2), speaker="2")
    yield root
    cache.undo()


class Device(Wav2Vec2CTC):
    """Module on a simulated device that holds `fits_s` padded seconds, from the global step `from_step` on."""

    fits_s, fits_in_validation_s, from_step, only_with = float("inf"), float("inf"), 0, None

    def training_step(self, batch, batch_idx):
        self.started.append((self.global_step, batch.micro_batch))
        is_due = self.global_step >= self.from_step and (self.only_with is None or self.only_with == batch.micro_batch)
        padded_s = batch.waveforms_BT.numel() / SAMPLE_RATE
        loss = super().training_step(batch, batch_idx)
        if is_due and padded_s > self.fits_s:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        self.seen.append((self.current_epoch, batch.global_step, batch.micro_batch, tuple(batch.ids)))
        return loss

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        padded_s = batch.waveforms_BT.numel() / SAMPLE_RATE
        is_due = self.global_step >= self.from_step and batch_idx == 1  # after the first batch has been scored
        if is_due and padded_s > self.fits_in_validation_s:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        super().validation_step(batch, batch_idx, dataloader_idx)

    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        self.scored.append((self.global_step, len(self.pairs)))

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if batch.is_last_of_step:
            self.steps.append(self.global_step)

    def log(self, name, value, *args, **kwargs):
        if name == "train_loss":
            self.losses[self.global_step] = float(value)
        super().log(name, value, *args, **kwargs)


def module_of(**device):
    torch.manual_seed(0)
    plain = dict.fromkeys(("layerdrop", "activation_dropout"), 0.0)
    module = Device(None, TINY_CONFIG, freeze_feature_encoder=False, learning_rate=1e-3, **plain).double()
    for name, value in device.items():
        setattr(module, name, value)
    module.seen, module.started, module.scored, module.steps, module.losses = [], [], [], [], {}
    return module


def run(root, folder, module, *, device_seconds=9.0, train=out_of_memory.fit, callbacks=(), **options):
    data = LibriSpeechDataModule(
        str(root), ["train"], ["dev"], batch_seconds=9, device_seconds=device_seconds, num_workers=0
    )
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    settings = {"accelerator": "cpu", "max_epochs": EPOCHS, "log_every_n_steps": 1, "num_sanity_val_steps": 0}
    trainer = Trainer(**{**quiet, **settings, "default_root_dir": folder, **options}, callbacks=list(callbacks))
    train(trainer, module, data)
    return trainer, data


@pytest.fixture(scope="module")
def smaller(root, tmp_path_factory):
    """Run with the smaller batches from the start."""
    module = module_of()
    run(root, tmp_path_factory.mktemp("smaller"), module, device_seconds=4.5)
    return module


def steps_of(seen):
    """Return the utterances of each completed (epoch, step); a failed step is repeated from its beginning."""
    actual = {}
    for epoch, step, micro_batch, ids in seen:
        if micro_batch == 0:
            actual[epoch, step] = []
        actual[epoch, step] += ids
    return {place: sorted(set(ids)) for place, ids in actual.items()}


def check_same_end(module, expected):
    for (name, actual), (_, wanted) in zip(module.named_parameters(), expected.named_parameters(), strict=True):
        if "k_proj.bias" not in name:  # the softmax ignores this bias: its gradient is only rounding errors
            torch.testing.assert_close(actual, wanted, rtol=1e-6, atol=1e-8, msg=name)
    assert module.losses == pytest.approx(expected.losses, rel=1e-6)
    assert steps_of(module.seen) == steps_of(expected.seen)
    assert module.steps == expected.steps


# With 9 s there is one micro-batch per step, with 4.5 s two or three, with 2.25 s more.
@pytest.mark.parametrize(
    ("device", "ends_with"),
    [
        ({"fits_s": 4.6}, 4.5),  # in the very first step
        ({"fits_s": 4.6, "from_step": 2}, 4.5),  # within an epoch
        ({"fits_s": 4.6, "from_step": 5}, 4.5),
        ({"fits_s": 2.5}, 2.25),  # twice in a row
    ],
)
def test_ends_as_if_the_batches_had_been_smaller_from_the_start(root, smaller, device, ends_with, tmp_path, caplog):
    module = module_of(**device)
    with caplog.at_level(logging.WARNING, "w2v_lightning"):
        trainer, data = run(root, tmp_path, module)
    assert data.device_seconds == ends_with
    check_same_end(module, smaller)
    assert trainer.global_step == len(smaller.steps)
    warnings = [r.message for r in caplog.records if "Out of memory" in r.message]
    assert len(warnings) == (2 if ends_with < 4 else 1)
    assert f"Out of memory in step {device.get('from_step', 0)}, in a batch of" in warnings[0]
    assert any(utterance in warnings[0] for utterance in data.train_dataset.manifest.ids)
    assert "device_seconds=9" in warnings[0]
    assert not list(tmp_path.glob("**/*.ckpt"))


def test_what_half_a_step_has_left_behind_is_forgotten(root, smaller, tmp_path):
    """Gradients and logged sums of the failed step's first micro-batches are dropped."""
    module = module_of(fits_s=2.5, only_with=1, from_step=2)
    _, data = run(root, tmp_path, module, device_seconds=4.5)
    assert data.device_seconds == 2.25
    assert (2, 1) in module.started
    check_same_end(module, smaller)


@pytest.mark.parametrize("from_step", [3, *(pytest.param(step, marks=pytest.mark.slow) for step in (0, 1, 6))])
def test_a_validation_is_done_again_as_a_whole(root, smaller, from_step, tmp_path):
    """Fail in validations before training, within an epoch, at the end of an epoch, and at the end of the run."""
    validated = {"num_sanity_val_steps": -1, "val_check_interval": 0.2}  # after each of the 5 steps
    expected, module = module_of(), module_of(fits_in_validation_s=4.6, from_step=from_step)
    run(root, tmp_path / "expected", expected, device_seconds=4.5, **validated)
    _, data = run(root, tmp_path, module, **validated)
    assert data.device_seconds == 4.5
    check_same_end(module, expected)
    assert module.scored == expected.scored
    assert {number for _, number in module.scored} == {NUM_VALIDATED}


def test_within_the_optimisers_update_it_stops(root, tmp_path, monkeypatch):
    module, update = module_of(), torch.optim.AdamW.step

    def step(optimizer, closure=None):
        loss = closure()
        if module.global_step == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        update(optimizer)
        return loss

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(InputError, match=r"in step 1, .*as the optimiser updated the weights.*--ckpt_path"):
        run(root, tmp_path, module)


def test_where_the_longest_utterance_leaves_nothing_to_halve_it_stops(root, tmp_path, caplog):
    module = module_of(fits_s=0.1)
    with pytest.raises(
        InputError, match=r"cannot be smaller than its longest utterance.*data\.max_seconds.*gradient_checkpointing"
    ):
        run(root, tmp_path, module)
    assert not list(tmp_path.glob("**/*.ckpt"))
    assert module.global_step == 0


def test_other_errors_stay_what_they_are(root, tmp_path):
    module = module_of()
    module.training_step = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        run(root, tmp_path, module)
    module.training_step = lambda *_: torch.zeros(2) @ torch.zeros(3)
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        run(root, tmp_path, module)


@pytest.mark.parametrize("from_step", [0, 2, 5])
def test_loggers_and_best_checkpoints_go_on(root, from_step, tmp_path):
    """The log has every step exactly once, and the best checkpoint of the whole run is kept."""
    logger = CSVLogger(tmp_path, name="", version="")
    best = ModelCheckpoint(tmp_path / "best", monitor="val_loss", save_last=True)
    module = module_of(fits_s=4.6, from_step=from_step)
    trainer, _ = run(root, tmp_path, module, callbacks=[best], logger=logger, enable_checkpointing=True)
    rows = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    step, loss = rows[0].index("step"), rows[0].index("train_loss")
    logged = [int(row[step]) for row in rows[1:] if row[loss]]
    assert logged == list(range(trainer.global_step))
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == sorted(
        [best.best_model_path.rpartition("/")[2], "last.ckpt"]
    )
    assert torch.load(best.last_model_path, weights_only=False)["global_step"] == trainer.global_step


def test_an_average_of_the_weights_goes_on(root, tmp_path):
    averages = []
    for device_seconds, device in ((4.5, {}), (9, {"fits_s": 4.6, "from_step": 3})):
        average = MovingAverage(0.8)
        run(root, tmp_path, module_of(**device), device_seconds=device_seconds, callbacks=[average])
        averages.append(average._average_model.module.state_dict())
    for name, wanted in averages[0].items():
        if "k_proj.bias" not in name:
            torch.testing.assert_close(averages[1][name], wanted, rtol=1e-6, atol=1e-8, msg=name)


def test_on_the_command_line_an_automatic_run_gets_through(root, tmp_path, monkeypatch, caplog):
    """There are one log folder, one model and one warning about the retry."""
    training_step = Wav2Vec2CTC.training_step

    def limited(module, batch, batch_idx):
        if batch.waveforms_BT.numel() / SAMPLE_RATE > 4.6 and module.global_step >= 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return training_step(module, batch, batch_idx)

    monkeypatch.setattr(Wav2Vec2CTC, "training_step", limited)
    config = {
        "model": {"pretrained": None, "config": TINY_CONFIG, "freeze_feature_encoder": False},
        "data": {"root": str(root), "train_splits": ["train"], "val_splits": ["dev"], "batch_seconds": 9,
                 "device_seconds": "auto", "num_workers": 1},
        "trainer": {"max_epochs": 2, "default_root_dir": str(tmp_path / "runs"), "accelerator": "cpu"},
    }  # fmt: skip
    (tmp_path / "auto.yaml").write_text(yaml.safe_dump(config))
    with caplog.at_level(logging.INFO, "w2v_lightning"):
        assert main(["fit", "--config", str(tmp_path / "auto.yaml")]) == 0
    messages = [r.message for r in caplog.records]
    retry = "with data.device_seconds=9. Retrying this step with data.device_seconds=4.5"
    assert sum(retry in message for message in messages) == 1
    assert sum(message.startswith("data.device_seconds: 9 s on") for message in messages) == 1
    (version,) = (tmp_path / "runs" / "lightning_logs").iterdir()
    assert (version / "model" / "model.safetensors").exists()
    best, last = files.list_checkpoints(str(tmp_path / "runs" / "checkpoints"))
    assert best.endswith("/best.ckpt")
    assert files.global_step(last) == 10


SCRIPT = """
import sys, torch
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch import Trainer
from w2v_lightning import LibriSpeechDataModule, Wav2Vec2CTC
from w2v_lightning.errors import InputError
from w2v_lightning.training import out_of_memory

_ChildProcessObserver.__init__.__defaults__ = (0.01,)  # checks the processes all the time, not only every 5 s
root, out, rank, config = sys.argv[1], sys.argv[2], int(sys.argv[3]), eval(sys.argv[4])

class Device(Wav2Vec2CTC):
    def training_step(self, batch, batch_idx):
        if self.global_step == 1 and self.global_rank == rank:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return super().training_step(batch, batch_idx)

if __name__ == "__main__":
    data = LibriSpeechDataModule(root, ["train"], [], batch_seconds=9, device_seconds=4.5, num_workers=0)
    trainer = Trainer(max_steps=4, accelerator="cpu", devices=2, strategy="ddp", default_root_dir=out, logger=False,
                      enable_progress_bar=False, enable_checkpointing=False, limit_val_batches=0)
    try:
        out_of_memory.fit(trainer, Device(None, config, freeze_feature_encoder=False), data)
    except InputError as error:
        sys.exit(f"error: {error}")
"""


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_one_of_several_processes_ends_all_with_the_remedy(root, rank, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, script, root, tmp_path, rank, TINY_CONFIG]
    # Both processes hold the pipe, so this returns when both have ended.
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode != 0
    assert f"on rank {rank} of 2: the other ranks cannot continue without it" in done.stderr
    assert "Set data.device_seconds=2.25" in done.stderr
    assert "--ckpt_path" in done.stderr
