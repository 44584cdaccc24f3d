"""Sharded weights on two and three processes: results equal one process, also when the number changes."""

import os
import signal
from functools import partial
from pathlib import Path

import forked
import pytest
import running
import torch
import witness
import yaml
from corpus import random_texts, write_split
from safetensors.torch import load_file

from w2v_lightning.__main__ import main
from w2v_lightning.runtime import signals

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.__version__ < "2.6", reason="fsdp2 needs torch 2.6"),
]
NUM_STEPS = 14


@pytest.fixture
def corpus(tmp_path):
    write_split(tmp_path / "corpus", "train", random_texts(40, seed=1), speaker="1")
    write_split(tmp_path / "corpus", "dev", random_texts(9, seed=3), speaker="3")
    return tmp_path / "corpus"


def fit(config, folder, devices, strategy, *options, command=main):
    """Start the processes of the run once."""
    arguments = ["fit", "--config", config, f"--trainer.devices={devices}", f"--trainer.strategy={strategy}", *options]
    return forked.start(folder, command, arguments, ranks=devices)


def fit_to_the_end(config, folder, devices, *rest, **options):
    assert forked.ended(fit(config, folder, devices, *rest, **options), folder) == [0] * devices, forked.logs(folder)


def exported(folder):
    """Weights at the end of the last start."""
    *_, last = sorted(folder.glob("lightning_logs/*/model/model.safetensors"), key=lambda path: path.stat().st_mtime)
    return load_file(last)


def assert_same_weights(folder, other):
    result, expected = exported(folder), exported(other)
    assert result.keys() == expected.keys()
    for name, weight in expected.items():
        # Softmax is invariant to the keys' bias: its gradient is pure rounding error, which Adam amplifies.
        assert "k_proj.bias" in name or torch.allclose(result[name], weight, atol=1e-5), name


def test_preempted_on_two_then_on_one_then_on_three_processes(corpus, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "moved"
    clipped = {"gradient_clip_val": 0.5}
    config = running.config(corpus, whole, NUM_STEPS, **clipped)
    fit_to_the_end(config, whole, 1, "auto")

    config = running.config(corpus, folder, NUM_STEPS, **clipped)
    for hold_at, devices, strategy in ((5, 2, "fsdp2"), (9, 1, "auto")):
        (folder / "seen" / "hold").write_text(str(hold_at))
        processes = fit(config, folder, devices, strategy, "--model.gradient_checkpointing=true")
        running.wait_until(lambda line, at=hold_at: (line["what"], line["step"]) == ("held", at), folder, processes)
        os.kill(processes[0].pid, signal.SIGTERM)
        assert forked.ended(processes, folder) == [signals.PREEMPTED] * devices, forked.logs(folder)
    (folder / "seen" / "hold").unlink()
    fit_to_the_end(config, folder, 3, "fsdp2")

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
        fit_to_the_end(path, folder, 2, strategy)
    (_, ddp), (_, fsdp2) = (witness.steps(tmp_path / strategy / "seen") for strategy in ("ddp", "fsdp2"))
    assert fsdp2 == pytest.approx(ddp, rel=1e-5)
    assert list(ddp) == list(range(6))
    assert_same_weights(tmp_path / "fsdp2", tmp_path / "ddp")


def traced(arguments):
    """Compile without generating code, which takes minutes and is the same with any strategy."""
    torch.compile = partial(torch.compile, backend="aot_eager")
    return main(arguments)


def test_compiled_layers_whose_weights_are_shared_out(corpus, tmp_path):
    """Test compiling together with sharding without a GPU."""
    losses = []
    for folder, options in ((tmp_path / "plain", []), (tmp_path / "compiled", ["--model.speed.compile=true"])):
        config = running.config(corpus, folder, 3)
        fit_to_the_end(config, folder, 2, "fsdp2", *options, command=traced)
        losses.append(witness.steps(folder / "seen")[1])
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
