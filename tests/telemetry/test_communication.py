"""Cost of exchanging gradients, and network traffic, in throughput.json."""

import json
import time

import forked
import pytest
import torch
from corpus import random_texts, write_split
from lightning.pytorch import Callback, Trainer
from tiny import TINY_CONFIG

from w2v_lightning import LibriSpeechDataModule, Wav2Vec2CTC
from w2v_lightning.strategies.ddp import PlannedDDPStrategy
from w2v_lightning.telemetry.communication import Traffic, summary
from w2v_lightning.telemetry.throughput import Throughput


class SlowSecondRank(Callback):
    def on_before_backward(self, trainer, pl_module, loss):
        time.sleep(0.2 * trainer.global_rank)


def train(folder):
    data = LibriSpeechDataModule(
        str(folder / "corpus"), ["train"], [], batch_seconds=9, device_seconds=3.3, num_workers=0
    )
    trainer = Trainer(
        max_steps=5, accelerator="cpu", devices=2, default_root_dir=folder, logger=False, limit_val_batches=0,
        enable_progress_bar=False, enable_checkpointing=False, callbacks=[Throughput(), SlowSecondRank()],
        strategy=PlannedDDPStrategy(),
    )  # fmt: skip
    trainer.fit(Wav2Vec2CTC(None, TINY_CONFIG), datamodule=data)


def test_what_a_rank_has_more_than_the_last_one_is_waiting():
    result = summary(torch.tensor([[5.0, 1.0, 9.0], [2.0, 4.0, 1.0]]))  # ranks x steps
    assert result["steps"] == 3
    assert result["exposed_ms_per_step"] == pytest.approx(22 / 6)
    assert result["exposed_ms_median"] == pytest.approx(3.5)
    assert result["waiting_ms_per_step_of_ranks"] == pytest.approx([11 / 3, 1], abs=1e-3)
    assert result["waiting_ms_per_step"] == pytest.approx(14 / 6)
    assert result["waiting_ms_median"] == pytest.approx(1.5)


@pytest.mark.slow
def test_the_slow_rank_is_the_one_that_never_waits(tmp_path):
    write_split(tmp_path / "corpus", "train", random_texts(30, seed=1))
    processes = forked.start(tmp_path, train, tmp_path, ranks=2)
    assert forked.ended(processes, tmp_path) == [0, 0], forked.logs(tmp_path)
    (path,) = tmp_path.rglob("throughput.json")
    report = json.loads(path.read_text())
    result, alone = report["communication"], report["all_reduce"]
    assert alone["gradient_bytes"] == report["workload"]["gradient_bytes"] > 4096
    for name in ("latency_ms", "gradients_ms"):  # with so small a model either may take longer
        assert 0 < alone[name] < 1000
    assert (report["host"]["hosts"], report["host"]["devices_per_host"]) == (1, 2)
    for name, whole in (("audio_s", 3600 * report["audio_hours"]), ("utterances", report["utterances"])):
        assert sum(window[name] for window in report["windows"]) == pytest.approx(whole, rel=1e-4)  # sum of both ranks
    assert result["steps"] == 5  # each has two micro-batches, and the second one exchanges gradients
    first, second = result["waiting_ms_per_step_of_ranks"]
    assert second < 100 < first < 1000
    assert result["exposed_ms_per_step"] >= result["waiting_ms_per_step"] >= 0.4 * first


def interface(root, name, received, sent):
    folder = root / name / "statistics"
    folder.mkdir(parents=True)
    (folder / "rx_bytes").write_text(f"{received}\n")
    (folder / "tx_bytes").write_text(f"{sent}\n")
    return root / name


def test_traffic_is_that_of_all_interfaces_but_the_loopback_each_byte_once(tmp_path):
    interface(tmp_path, "lo", 1_000_000, 1_000_000)
    interface(tmp_path, "eth0", 100, 10)
    interface(tmp_path, "bond0", 30, 3)
    (interface(tmp_path, "eth1", 30, 3) / "master").symlink_to(tmp_path / "bond0")
    result = Traffic.now(tmp_path)
    assert (result.received, result.sent) == (130, 13)
    later = Traffic(result.received + 500, result.sent + 50, result.time_s + 5)
    rates = {"network_received_bytes_per_s": 100, "network_sent_bytes_per_s": 10}
    assert result.rates_until(later) == pytest.approx(rates)


def test_a_kernel_that_does_not_say(tmp_path):
    assert Traffic.now(tmp_path / "nothing") is None
    (interface(tmp_path, "eth0", 100, 10) / "statistics" / "rx_bytes").unlink()
    assert Traffic.now(tmp_path) is None


def test_this_hosts_traffic_does_not_shrink():
    first = Traffic.now()
    if first is None:
        pytest.skip("/sys/class/net tells nothing here")
    time.sleep(0.001)
    second = Traffic.now()
    assert second.received >= first.received
    assert second.time_s > first.time_s
