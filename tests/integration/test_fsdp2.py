"""Weights shared out among two and three processes: the run is that of one, also where it moves between them."""

import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import running
import torch
import witness
import yaml
from corpus import random_texts, write_split
from safetensors.torch import load_file

from w2v_lightning import sigterm

pytestmark = pytest.mark.slow
NUM_STEPS = 14


@pytest.fixture
def corpus(tmp_path):
    write_split(tmp_path / "corpus", "train", random_texts(40, seed=1), speaker="1")
    write_split(tmp_path / "corpus", "dev", random_texts(9, seed=3), speaker="3")
    return tmp_path / "corpus"


@contextmanager
def fit(config, folder, devices, strategy, *options):
    devices = [f"--trainer.devices={devices}", f"--trainer.strategy={strategy}"]
    with running.started([*running.FIT, config, *devices, *options], folder / "fit.log") as process:
        yield process
        assert process.poll() is not None


def ended(process, folder, status=0):
    assert process.wait(running.LIMIT_S) == status, running.logs(folder)


def exported(folder):
    """The weights of the last start."""
    *_, last = sorted(folder.glob("lightning_logs/*/model/model.safetensors"), key=lambda path: path.stat().st_mtime)
    return load_file(last)


def assert_same_weights(folder, other):
    found, expected = exported(folder), exported(other)
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        # The softmax does not see a bias of the keys: its gradient is rounding alone, which Adam makes large.
        assert "k_proj.bias" in name or torch.allclose(found[name], weight, atol=1e-5), name


def test_preempted_on_two_then_on_one_then_on_three_processes(corpus, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "moved"
    clipped = {"gradient_clip_val": 0.5}
    config = running.config(corpus, whole, NUM_STEPS, **clipped)
    with fit(config, whole, 1, "auto") as process:
        ended(process, whole)

    config = running.config(corpus, folder, NUM_STEPS, **clipped)
    for hold_at, devices, strategy in ((5, 2, "fsdp2"), (9, 1, "auto")):
        (folder / "seen" / "hold").write_text(str(hold_at))
        with fit(config, folder, devices, strategy, "--model.gradient_checkpointing=true") as process:
            running.wait_until(lambda line, at=hold_at: (line["what"], line["step"]) == ("held", at), folder, [process])
            process.send_signal(signal.SIGTERM)
            ended(process, folder, sigterm.PREEMPTED)
    (folder / "seen" / "hold").unlink()
    with fit(config, folder, 3, "fsdp2") as process:
        ended(process, folder)

    (found_ids, found_losses), (ids, losses) = (witness.steps(each / "seen") for each in (folder, whole))
    assert found_ids == ids
    assert found_losses == pytest.approx(losses, rel=1e-5)
    assert list(losses) == list(range(NUM_STEPS))
    assert_same_weights(folder, whole)


PRETRAINING = {"codevector_dim": 16, "proj_codevector_dim": 16, "num_codevectors_per_group": 20}
KINDS = {
    "lora": {"model": {"lora": {"rank": 4, "alpha": 8.0, "dropout": 0.0}, "freeze_feature_encoder": True}},
    "head alone at first": {"model": {"freeze_updates": 3}},
    "pre-training": {
        "task": "pretraining",
        "model": {"config": running.TINY_CONFIG | PRETRAINING, "num_negatives": 10},
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_ddp_also_for(kind, corpus, tmp_path):
    for strategy in ("ddp", "fsdp2"):
        folder = tmp_path / strategy
        path = running.config(corpus, folder, 6, gradient_clip_val=0.5)
        config = yaml.safe_load(Path(path).read_text())
        config["model"] |= KINDS[kind]["model"]
        if "task" in KINDS[kind]:
            config["task"] = KINDS[kind]["task"]
            del config["model"]["freeze_feature_encoder"]
        Path(path).write_text(yaml.safe_dump(config))
        with fit(path, folder, 2, strategy) as process:
            ended(process, folder)
    (_, ddp), (_, fsdp2) = (witness.steps(tmp_path / strategy / "seen") for strategy in ("ddp", "fsdp2"))
    assert fsdp2 == pytest.approx(ddp, rel=1e-5)
    assert list(ddp) == list(range(6))
    assert_same_weights(tmp_path / "fsdp2", tmp_path / "ddp")


def test_compiled_layers_whose_weights_are_shared_out(corpus, tmp_path):
    """Compiling is for GPUs; that both go together can be seen without one."""
    losses = []
    for folder, options in ((tmp_path / "plain", []), (tmp_path / "compiled", ["--model.speed.compile=true"])):
        config = running.config(corpus, folder, 3)
        with fit(config, folder, 2, "fsdp2", *options) as process:
            ended(process, folder)
        losses.append(witness.steps(folder / "seen")[1])
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
