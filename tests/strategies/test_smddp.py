"""SMDDPStrategy in several processes, over a stand-in for AWS's library that refuses what SMDDP refuses."""

import json
import logging
import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import yaml
from corpus import random_texts, write_split
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from tiny import TINY_CONFIG

from w2v_lightning import SMDDPStrategy
from w2v_lightning.__main__ import main
from w2v_lightning.errors import InputError
from w2v_lightning.strategies import smddp

STANDINS = Path(__file__).parents[1] / "standins"
P4D = {
    **{"SM_HOSTS": '["algo-1"]', "SM_CURRENT_HOST": "algo-1", "SM_NUM_GPUS": "2"},
    "SM_CURRENT_INSTANCE_TYPE": "ml.p4d.24xlarge",
}

SCRIPT = """
import json, sys, torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
import w2v_lightning.strategies.smddp
from w2v_lightning import LibriSpeechDataModule, Wav2Vec2CTC
from w2v_lightning.strategies.sagemaker_environment import SageMakerEnvironment

root, out, strategy, config = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])

class Recorded(Wav2Vec2CTC):
    def training_step(self, batch, batch_idx):
        self.log("mean_rank", float(self.global_rank), sync_dist=True)
        return super().training_step(batch, batch_idx)

class Prepared(LibriSpeechDataModule):
    prepare_data = LibriSpeechDataModule.__bases__[0].prepare_data  # Lightning's: nothing to wait for

stock = strategy.startswith("stock")
if stock:
    import smdistributed.dataparallel.torch.torch_smddp
    strategy, kind = DDPStrategy(process_group_backend="smddp", cluster_environment=SageMakerEnvironment()), strategy
torch.manual_seed(1)
module = Recorded(None, config, freeze_feature_encoder=False, learning_rate=1e-3, layerdrop=0.4,
                  activation_dropout=0.0).double()
kind = Prepared if stock and kind == "stock-prepared" else LibriSpeechDataModule
data = kind(root, ["train"], ["dev"], batch_seconds=9, device_seconds=3.3, num_workers=0)
trainer = Trainer(max_steps=4, accelerator="cpu", devices=int(sys.argv[5]), default_root_dir=out, logger=False,
                  log_every_n_steps=1, enable_progress_bar=False, enable_model_summary=False, strategy=strategy)
trainer.fit(module, datamodule=data)
mean_rank = float(trainer.callback_metrics["mean_rank"])
trainer.save_checkpoint(f"{out}/end.ckpt")
(scores,) = trainer.validate(module, datamodule=data, ckpt_path=f"{out}/end.ckpt", verbose=False)
if trainer.is_global_zero:
    norms = {name: float(p.detach().norm()) for name, p in module.named_parameters() if "k_proj.bias" not in name}
    backend = getattr(trainer.strategy, "process_group_backend", None)
    print("RESULT", json.dumps({"backend": backend, "mean_rank": mean_rank, "norms": norms, "scores": scores}))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    write_split(root, "train", random_texts(16, seed=1))
    write_split(root, "dev", random_texts(5, seed=2), speaker="2")
    return root


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


def mpirun(number, command, environ, timeout_s=180):
    """Run `command` in as many processes, as mpirun does; the exit status and output of each, the first one's first."""
    shared = {**os.environ, **environ, "MASTER_PORT": free_port(), "OMPI_COMM_WORLD_SIZE": str(number)}
    shared |= {"PYTHONPATH": str(STANDINS), "OMPI_COMM_WORLD_LOCAL_SIZE": str(number)}
    processes = [
        subprocess.Popen(
            [str(part) for part in command],
            env=shared | {"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_RANK": str(rank)},
            **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True},
        )
        for rank in range(number)
    ]
    try:
        first, _ = processes[0].communicate(timeout=timeout_s)
        if processes[0].returncode:  # the others may wait for it for ever
            return [(processes[0].returncode, first)]
        others = [process.communicate(timeout=timeout_s)[0] for process in processes[1:]]
        return [(p.returncode, output) for p, output in zip(processes, [first, *others], strict=True)]
    finally:
        for process in processes:
            process.kill()


def train(tmp_path, root, strategy, number):
    """Exit status and output of the first process."""
    script, out = tmp_path / "train.py", tmp_path / f"{strategy}{number}"
    script.write_text(SCRIPT)
    config = TINY_CONFIG | {"num_hidden_layers": 3}
    command = [sys.executable, script, root, out, strategy, json.dumps(config), number]
    return mpirun(number, command, P4D)[0]


def result_of(output):
    (line,) = (line for line in output.splitlines() if line.startswith("RESULT"))
    return json.loads(line.removeprefix("RESULT "))


@pytest.mark.slow
def test_over_smddp_a_run_learns_what_one_process_learns(tmp_path, root):
    status, output = train(tmp_path, root, "smddp", number=2)
    assert status == 0, output
    assert (tmp_path / "smddp2" / "end.ckpt").exists()
    over_two = result_of(output)
    assert over_two["backend"] == "smddp"
    assert over_two["mean_rank"] == 0.5

    status, output = train(tmp_path, root, "auto", number=1)
    assert status == 0, output
    alone = result_of(output)
    assert over_two["norms"] == pytest.approx(alone["norms"], rel=1e-6)
    assert over_two["scores"] == pytest.approx(alone["scores"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "refused"), [("stock", "new_group"), ("stock-prepared", "ReduceOp")])
def test_lightnings_own_strategy_fails_over_smddp(tmp_path, root, kind, refused):
    status, output = train(tmp_path, root, kind, number=2)
    assert status != 0
    assert f"SMDDP does not support: {refused}" in output


@pytest.fixture
def config_file(tmp_path, root):
    config = {
        "model": {"pretrained": None, "config": TINY_CONFIG, "freeze_feature_encoder": False},
        "data": {
            **{"root": str(root), "train_splits": ["train"], "val_splits": ["dev"]},
            **{"batch_seconds": 9, "device_seconds": 3.3, "num_workers": 0},
        },
        "trainer": {"max_steps": 2, "default_root_dir": str(tmp_path / "runs"), "accelerator": "cpu", "logger": False},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def throughput_of(tmp_path):
    (report,) = (tmp_path / "runs").rglob("throughput.json")
    return json.loads(report.read_text())


@pytest.mark.slow
def test_the_command_line_takes_smddp_where_it_can_work(tmp_path, config_file):
    command = [sys.executable, "-m", "w2v_lightning", "fit", "--config", config_file]  # strategy: auto
    (status, output), (_, other) = mpirun(2, command, P4D)
    assert status == 0, output
    assert output.count("Gradients travel by smddp between 2 processes: ml.p4d.24xlarge, started with mpirun") == 1
    assert "Precision 32-true" in output
    assert "Gradients travel" not in other
    assert "Precision 32-true" not in other  # the first process speaks for all
    report = throughput_of(tmp_path)
    assert (report["backend"], report["world_size"]) == ("smddp", 2)
    assert "ml.p4d.24xlarge" in report["backend_reason"]


@pytest.mark.slow
def test_under_torchrun_the_command_line_falls_back_and_says_why(tmp_path, config_file):
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    command = [sys.executable, *torchrun, "-m", "w2v_lightning", "fit", "--config", str(config_file)]
    done = subprocess.run(
        command + ["--trainer.strategy=smddp"],
        env={**os.environ, **P4D, "PYTHONPATH": str(STANDINS)},
        **{"capture_output": True, "text": True, "check": False, "timeout": 180},
    )
    assert done.returncode == 0, done.stderr
    expected = (
        "Gradients travel by gloo between 2 processes: under torchrun SMDDP leaves all-reduce to NCCL; start with"
    )
    assert done.stderr.count(expected) == 1
    report = throughput_of(tmp_path)
    assert (report["backend"], report["world_size"]) == ("gloo", 2)
    assert "start with mpirun" in report["backend_reason"]


@pytest.mark.slow
def test_a_script_started_once_gets_its_other_processes_from_lightning(tmp_path, config_file):
    command = [sys.executable, "-m", "w2v_lightning", "fit", "--config", str(config_file), "--trainer.devices=2"]
    environ = {**os.environ, **P4D, "SM_CURRENT_INSTANCE_TYPE": "ml.g5.12xlarge", "MASTER_PORT": free_port()}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr
    assert "not on ml.g5.12xlarge" in done.stderr
    assert throughput_of(tmp_path)["world_size"] == 2


# ---- without processes ------------------------------------------------------------------------------------------


@pytest.fixture
def rendezvous(monkeypatch):
    """Lightning writes these into the environment; so they are restored."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "7777")


@pytest.fixture
def on_p4d(monkeypatch):
    """A process that mpirun has started beside another one, on an instance that has SMDDP."""
    for name, value in P4D.items():
        monkeypatch.setenv(name, value)
    for name, value in {"RANK": 0, "SIZE": 2, "LOCAL_RANK": 0, "LOCAL_SIZE": 2}.items():
        monkeypatch.setenv(f"OMPI_COMM_WORLD_{name}", str(value))
    monkeypatch.setattr(smddp, "has_smddp", lambda: True)
    monkeypatch.setattr(smddp, "import_module", lambda name: None)


def test_lightning_knows_the_strategy_by_name():
    trainer = Trainer(strategy="smddp", accelerator="cpu", devices=2, logger=False, enable_checkpointing=False)
    assert type(trainer.strategy) is SMDDPStrategy
    assert "no SageMaker instance" in trainer.strategy.backend_reason


def test_instead_of_falling_back_it_can_refuse():
    with pytest.raises(InputError, match=r"smddp cannot be used: SMDDP works on ml\.p3dn"):
        SMDDPStrategy(fallback="error").setup_environment()


def test_the_command_line_says_in_one_line_why_it_refuses(config_file, capsys):
    strategy = {"class_path": "w2v_lightning.SMDDPStrategy", "init_args": {"fallback": "error"}}
    options = ["--trainer.strategy", json.dumps(strategy), "--trainer.devices=1"]
    assert main(["fit", "--config", str(config_file), *options]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert line.startswith("error: trainer.strategy: smddp cannot be used: SMDDP works on ")


def test_a_strategy_that_does_not_exist_is_named(config_file, capsys):
    assert main(["fit", "--config", str(config_file), "--trainer.strategy=smdp"]) == 2
    assert "trainer.strategy: there is no 'smdp'. Did you mean smddp?" in capsys.readouterr().err


def test_a_library_that_does_not_load_is_a_reason_too(on_p4d, monkeypatch):
    def fail(name):
        raise ImportError("libcudart.so.11.0: cannot open shared object file")

    monkeypatch.setattr(smddp, "import_module", fail)
    assert "cannot be loaded (libcudart.so.11.0" in SMDDPStrategy().backend_reason
    with pytest.raises(InputError, match=r"libcudart\.so"):
        SMDDPStrategy(fallback="error").setup_environment()


@pytest.mark.parametrize(("backend", "level"), [("smddp", logging.WARNING), ("auto", logging.INFO)])
def test_only_who_asked_for_smddp_is_warned(rendezvous, backend, level, monkeypatch, caplog):
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: None)
    strategy = SMDDPStrategy(backend=backend, parallel_devices=[torch.device("cuda:0")])
    strategy.cluster_environment = LightningEnvironment()
    with caplog.at_level(logging.INFO, logger="w2v_lightning"):
        strategy.setup_distributed()
    (record,) = (record for record in caplog.records if record.name == smddp.__name__)
    assert record.levelno == level
    assert "Gradients travel by nccl between 1 processes: SMDDP works on" in record.message


def test_the_group_is_made_without_a_device_id(rendezvous, on_p4d, monkeypatch):
    made = []

    def init_process_group(backend, **options):
        made.append((backend, options))
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)

    monkeypatch.setattr(torch.distributed, "init_process_group", init_process_group)
    devices = [torch.device("cuda:0"), torch.device("cuda:1")]
    SMDDPStrategy(parallel_devices=devices, timeout=timedelta(minutes=5)).setup_distributed()
    assert made == [("smddp", {"rank": 0, "world_size": 2, "timeout": timedelta(minutes=5)})]


@pytest.mark.parametrize("asked", ["mean", "avg", torch.distributed.ReduceOp.AVG])
def test_a_mean_is_a_sum_divided(on_p4d, monkeypatch, asked):
    operations = []

    def all_reduce(tensor, op, **options):
        operations.append(op)
        tensor.mul_(2)  # the other process has the same

    for name, value in {
        **{"is_initialized": lambda: True, "get_world_size": lambda group=None: 2, "all_reduce": all_reduce},
    }.items():
        monkeypatch.setattr(torch.distributed, name, value)
    strategy = SMDDPStrategy()
    for tensor in (torch.tensor([3.0, 5.0]), torch.tensor([3, 5])):
        expected = tensor.clone()
        assert strategy.reduce(tensor, reduce_op=asked) is tensor
        assert torch.equal(tensor, expected)
    assert strategy.reduce(torch.tensor(3), reduce_op="sum") == 6
    assert set(operations) == {torch.distributed.ReduceOp.SUM}
