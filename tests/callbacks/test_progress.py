"""The progress bar as a terminal shows it."""

import logging
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml
from rich.console import Console
from terminal import Terminal
from tiny import TINY_CONFIG, write_corpus

from w2v_lightning.callbacks.progress import RunProgress
from w2v_lightning.runtime.messages import MessageHandler

METRICS = {"train_loss_per_char": 1.25, "val_wer": 0.456, "val_cer": 0.123, "audio_s_per_s": 12345.6}


class _Output:
    def __init__(self, terminal):
        self.terminal = terminal

    def write(self, text):
        self.terminal.feed(text.replace("\n", "\r\n").encode())

    def flush(self):
        pass

    def isatty(self):
        return True


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_bar_keeps_steps_speed_and_time_left_and_messages_have_their_own_lines(columns, monkeypatch):
    terminal = Terminal(columns)
    output = _Output(terminal)
    monkeypatch.setattr(sys, "stderr", output)
    console = Console(file=output, force_terminal=True, width=columns, height=24)
    log = logging.Logger("test")
    log.addHandler(MessageHandler())
    progress = RunProgress(console)
    metrics = {name: torch.tensor(value) for name, value in METRICS.items()}
    trainer = SimpleNamespace(
        global_step=0, estimated_stepping_batches=80_000, callback_metrics=metrics, sanity_checking=False,
        num_val_batches=[7],
    )  # fmt: skip
    progress.on_train_start(trainer, None)
    trainer.global_step = 12_345
    progress.on_train_batch_end(trainer, None, None, None, 0)
    progress.on_validation_start(trainer, None)
    log.warning("A message.")
    progress._bar.refresh()
    lines = [line for line in terminal.shown[-1] if line]
    assert lines[0] == "A message."
    assert "12345/80000" in lines[1]
    assert " left" in lines[1]
    assert "12,346 audio-s/s" in lines[1]
    assert "0/7" in lines[2]
    progress.on_validation_end(trainer, None)
    progress.on_train_end(trainer, None)
    console.print("Summary")
    progress.teardown(trainer, None, "fit")
    lines = [line for line in terminal.shown[-1] if line]
    assert [line.split()[0] for line in lines] == ["A", "train", "Summary"]


@pytest.mark.slow
def test_a_run_on_a_terminal_ends_with_one_bar_above_one_summary(tmp_path):
    write_corpus(tmp_path / "corpus")
    config = {
        "model": {"pretrained": None, "config": TINY_CONFIG, "freeze_feature_encoder": False},
        "data": {"root": str(tmp_path / "corpus"), "train_splits": ["train"], "val_splits": ["dev"], "num_workers": 0},
        "trainer": {"max_steps": 8, "max_epochs": -1, "accelerator": "cpu", "default_root_dir": str(tmp_path / "run")},
    }
    config["data"] |= {"batch_seconds": 9, "device_seconds": 9}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    terminal = Terminal(80)
    command = [sys.executable, "-m", "w2v_lightning", "fit", "--config", str(tmp_path / "tiny.yaml")]
    assert terminal.run(command) == 0
    last = terminal.shown[-1]
    bars = [number for number, line in enumerate(last) if line.startswith(("train ", "validate "))]
    summaries = [number for number, line in enumerate(last) if line.startswith("Validation WER")]
    assert len(bars) == len(summaries) == 1, last
    assert bars < summaries
    assert "8/8" in last[bars[0]]
    for shown in terminal.shown:
        for line in shown:
            assert not line.startswith("train ") or "/8" in line
