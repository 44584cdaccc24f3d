"""SMDDPStrategy in several processes, with a stand-in for AWS's library that lacks the same features."""

import json
import logging
import os
import subprocess
import sys
from datetime import timedelta
from importlib import import_module
from pathlib import Path

import forked
import pytest
import torch
import yaml
from corpus import random_texts, write_split
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from tiny import TINY_CONFIG

from w2v_lightning import LibriSpeechDataModule, SMDDPStrategy, Wav2Vec2CTC
from w2v_lightning.__main__ import main
from w2v_lightning.errors import InputError
from w2v_lightning.strategies import smddp
from w2v_lightning.strategies.sagemaker_environment import SageMakerEnvironment

STANDINS = Path(__file__).parents[1] / "standins"
P4D = {
    **{"SM_HOSTS": '["algo-1"]', "SM_CURRENT_HOST": "algo-1", "SM_NUM_GPUS": "2"},
    "SM_CURRENT_INSTANCE_TYPE": "ml.p4d.24xlarge",
}

CONFIG = TINY_CONFIG | {"num_hidden_layers": 3}


class Recorded(Wav2Vec2CTC):
    def training_step(self, batch, batch_idx):
        self.log("mean_rank", float(self.global_rank), sync_dist=True)
        return super().training_step(batch, batch_idx)


class Prepared(LibriSpeechDataModule):
    prepare_data = LibriSpeechDataModule.__bases__[0].prepare_data  # Lightning's, which does nothing


def stock_strategy():
    import_module("smdistributed.dataparallel.torch.torch_smddp")
    return DDPStrategy(process_group_backend="smddp", cluster_environment=SageMakerEnvironment())


def run(root, folder, strategy, number):
    torch.manual_seed(1)
    options = {"freeze_feature_encoder": False, "learning_rate": 1e-3, "layerdrop": 0.4, "activation_dropout": 0.0}
    module = Recorded(None, CONFIG, **options).double()
    kind = Prepared if strategy == "stock-prepared" else LibriSpeechDataModule
    data = kind(str(root), ["train"], ["dev"], batch_seconds=9, device_seconds=3.3, num_workers=0)
    trainer = Trainer(
        max_steps=4, accelerator="cpu", devices=number, default_root_dir=folder, logger=False, log_every_n_steps=1,
        enable_progress_bar=False, enable_model_summary=False,
        strategy=stock_strategy() if strategy.startswith("stock") else strategy,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    mean_rank = float(trainer.callback_metrics["mean_rank"])
    trainer.save_checkpoint(folder / "end.ckpt")
    (scores,) = trainer.validate(module, datamodule=data, ckpt_path=str(folder / "end.ckpt"), verbose=False)
    if trainer.is_global_zero:
        norms = {name: float(p.detach().norm()) for name, p in module.named_parameters() if "k_proj.bias" not in name}
        backend = getattr(trainer.strategy, "process_group_backend", None)
        result = {"backend": backend, "mean_rank": mean_rank, "norms": norms, "scores": scores}
        (folder / "result.json").write_text(json.dumps(result))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    write_split(root, "train", random_texts(16, seed=1))
    write_split(root, "dev", random_texts(5, seed=2), speaker="2")
    return root


def mpirun(folder, number, target, *args):
    """Run `target(*args)` in processes as mpirun starts them on an instance with SMDDP; return their exit statuses."""
    shared = {**P4D, "MASTER_PORT": forked.free_port()}
    shared |= {"OMPI_COMM_WORLD_SIZE": str(number), "OMPI_COMM_WORLD_LOCAL_SIZE": str(number)}
    ranks = [{"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_RANK": str(rank)} for rank in range(number)]
    processes = forked.start(folder, with_library, target, args, environments=[shared | rank for rank in ranks])
    processes[0].join(forked.LIMIT_S)
    for process in processes[1:]:
        if processes[0].exitcode:
            process.kill()  # it may wait forever for the first one
    return forked.ended(processes, folder)


def with_library(target, args):
    sys.path.insert(0, str(STANDINS))
    return target(*args)


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.mark.slow
def test_over_smddp_a_run_learns_what_one_process_learns(tmp_path, root):
    two, one = tmp_path / "two", tmp_path / "one"
    assert mpirun(two, 2, run, root, two, "smddp", 2) == [0, 0], forked.logs(two)
    assert (two / "end.ckpt").exists()
    assert result_of(two)["backend"] == "smddp"
    assert result_of(two)["mean_rank"] == 0.5

    assert mpirun(one, 1, run, root, one, "auto", 1) == [0], forked.logs(one)
    assert result_of(two)["norms"] == pytest.approx(result_of(one)["norms"], rel=1e-6)
    assert result_of(two)["scores"] == pytest.approx(result_of(one)["scores"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "refused"), [("stock", "new_group"), ("stock-prepared", "ReduceOp")])
def test_lightnings_own_strategy_fails_over_smddp(tmp_path, root, kind, refused):
    assert mpirun(tmp_path, 2, run, root, tmp_path, kind, 2)[0] != 0
    assert f"SMDDP does not support: {refused}" in forked.logs(tmp_path, rank=0)


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
    arguments = ["fit", "--config", str(config_file)]  # strategy: auto
    assert mpirun(tmp_path, 2, main, arguments) == [0, 0], forked.logs(tmp_path)
    output, other = (forked.logs(tmp_path, rank) for rank in range(2))
    expected = "Gradients are exchanged over smddp between 2 processes: ml.p4d.24xlarge, started with mpirun"
    assert output.count(expected) == 1
    assert "Precision 32-true" in output
    assert "Gradients are exchanged" not in other
    assert "Precision 32-true" not in other  # only the first process logs
    report = throughput_of(tmp_path)
    assert (report["backend"], report["world_size"]) == ("smddp", 2)
    assert "ml.p4d.24xlarge" in report["backend_reason"]


@pytest.mark.slow
def test_under_torchrun_the_command_line_falls_back_and_says_why(tmp_path, config_file):
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={forked.free_port()}"]
    command = [sys.executable, *torchrun, "-m", "w2v_lightning", "fit", "--config", str(config_file)]
    done = subprocess.run(
        command + ["--trainer.strategy=smddp"],
        env={**os.environ, **P4D, "PYTHONPATH": str(STANDINS)},
        **{"capture_output": True, "text": True, "check": False, "timeout": 180},
    )
    assert done.returncode == 0, done.stderr
    expected = (
        "Gradients are exchanged over gloo between 2 processes: under torchrun SMDDP leaves all-reduce to NCCL; start"
    )
    assert done.stderr.count(expected) == 1
    report = throughput_of(tmp_path)
    assert (report["backend"], report["world_size"]) == ("gloo", 2)
    assert "start the processes with mpirun" in report["backend_reason"]


@pytest.mark.slow
def test_a_script_started_once_gets_its_other_processes_from_lightning(tmp_path, config_file):
    command = [sys.executable, "-m", "w2v_lightning", "fit", "--config", str(config_file), "--trainer.devices=2"]
    environ = {**os.environ, **P4D, "SM_CURRENT_INSTANCE_TYPE": "ml.g5.12xlarge", "MASTER_PORT": forked.free_port()}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr
    assert "not on ml.g5.12xlarge" in done.stderr
    assert throughput_of(tmp_path)["world_size"] == 2


# ---- without processes ------------------------------------------------------------------------------------------


@pytest.fixture
def rendezvous(monkeypatch):
    """Set variables that Lightning changes, so that they are restored after the test."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "7777")


@pytest.fixture
def on_p4d(monkeypatch):
    """Simulate one of two processes that mpirun has started, on an instance with SMDDP."""
    for name, value in P4D.items():
        monkeypatch.setenv(name, value)
    for name, value in {"RANK": 0, "SIZE": 2, "LOCAL_RANK": 0, "LOCAL_SIZE": 2}.items():
        monkeypatch.setenv(f"OMPI_COMM_WORLD_{name}", str(value))
    monkeypatch.setattr(smddp, "has_smddp", lambda: True)
    monkeypatch.setattr(smddp, "import_module", lambda name: None)


def test_lightning_knows_the_strategy_by_name():
    trainer = Trainer(strategy="smddp", accelerator="cpu", devices=2, logger=False, enable_checkpointing=False)
    assert type(trainer.strategy) is SMDDPStrategy
    assert "this is not a SageMaker instance" in trainer.strategy.backend_reason


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
    assert "trainer.strategy: unknown strategy 'smdp'. Did you mean smddp?" in capsys.readouterr().err


def test_a_library_that_does_not_load_is_a_reason_too(on_p4d, monkeypatch):
    def fail(name):
        raise ImportError("libcudart.so.11.0: cannot open shared object file")

    monkeypatch.setattr(smddp, "import_module", fail)
    assert "cannot be loaded (libcudart.so.11.0" in SMDDPStrategy().backend_reason
    with pytest.raises(InputError, match=r"libcudart\.so"):
        SMDDPStrategy(fallback="error").setup_environment()


@pytest.mark.parametrize(
    ("backend", "level", "reason"), [("smddp", logging.WARNING, ": SMDDP works on"), ("auto", logging.INFO, ".")]
)
def test_only_who_asked_for_smddp_is_told_why(rendezvous, backend, level, reason, monkeypatch, caplog):
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: None)
    strategy = SMDDPStrategy(backend=backend, parallel_devices=[torch.device("cuda:0")])
    strategy.cluster_environment = LightningEnvironment()
    with caplog.at_level(logging.INFO, logger="w2v_lightning"):
        strategy.setup_distributed()
    (record,) = (record for record in caplog.records if record.name == smddp.__name__)
    assert record.levelno == level
    assert record.message.startswith(f"Gradients are exchanged over nccl between 1 processes{reason}")


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
