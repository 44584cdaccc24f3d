"""Code of the container, without one: the command, the options of `fit`, the failure file, the handover."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pytest
import sample_job
import tiny
import torch
import yaml
from smallest_checkpoint import smallest_checkpoint

from w2v_lightning import cli
from w2v_lightning.callbacks.preemption import Preempted
from w2v_lightning.checkpoints import files
from w2v_lightning.errors import InputError
from w2v_lightning.runtime import signals
from w2v_lightning.sagemaker import container, container_callbacks, failure_file
from w2v_lightning.sagemaker.job import METRICS
from w2v_lightning.sagemaker.mpirun import mpirun
from w2v_lightning.sagemaker.request import metric_definitions
from w2v_lightning.strategies.sagemaker_environment import Hosts

JOB = replace(sample_job.JOB, count=1)
GPU_JOB = {"SM_CURRENT_INSTANCE_TYPE": "ml.g4dn.12xlarge", "SM_NUM_GPUS": "4"}


# ---- the command -----------------------------------------------------------------------------------------------------


def run_command(job, tmp_path, **variables):
    """Run the command in bash, with a torchrun that prints how it was called; return the output."""
    torchrun = tmp_path / "torchrun"
    torchrun.write_text('#!/bin/sh\necho "$PPID $$ $TORCH_ELASTIC_SHUTDOWN_TIMEOUT $*"\n')
    torchrun.chmod(0o755)
    command = " ".join(container.command(job).split())  # as the SDK splits it
    script = f"CMD=$(cat <<'EOF'\n{command}\nEOF\n)\necho $$\neval \"$CMD\"\necho never"
    host = {"SM_HOST_COUNT": "1", "SM_CURRENT_HOST_RANK": "0", "SM_MASTER_ADDR": "algo-1", "SM_NUM_GPUS": "0"}
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"} | host | variables
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def test_torchrun_takes_bashs_place_and_gets_a_process_for_each_gpu(tmp_path):
    two_hosts = {"SM_HOST_COUNT": "2", "SM_CURRENT_HOST_RANK": "1", "SM_NUM_GPUS": "8"}
    bash, called = run_command(replace(JOB, count=2), tmp_path, **two_hosts).splitlines()
    _, pid, shutdown_s, *options = called.split()
    assert pid == bash
    assert shutdown_s == "100"
    assert options == [
        *("--nnodes=2", "--node_rank=1", "--master_addr=algo-1", "--master_port=7777", "--nproc_per_node=8"),
        *("-m", "w2v_lightning.sagemaker.container"),
    ]


@pytest.mark.parametrize(("gpus", "processes"), [("0", 1), ("1", 1), ("10", 10)])
def test_a_single_host_need_not_resolve_its_name_nor_have_a_gpu(tmp_path, gpus, processes):
    out = run_command(JOB, tmp_path, SM_NUM_GPUS=gpus)
    assert f" --master_addr=127.0.0.1 --master_port=7777 --nproc_per_node={processes} -m" in out


def test_this_torchs_torchrun_knows_every_option_of_the_command():
    from torch.distributed.run import parse_args

    command = container.command(replace(JOB, count=2))
    for variable in ("$SM_HOST_COUNT", "$SM_CURRENT_HOST_RANK", "${SM_NUM_GPUS/#0/1}"):
        assert variable in command
        command = command.replace(variable, "1")
    parsed = parse_args(command.split(" torchrun ")[1].split())
    assert (parsed.training_script, parsed.module, parsed.master_port) == (
        "w2v_lightning.sagemaker.container",
        True,
        7777,
    )


def test_smddp_goes_by_mpirun(monkeypatch):
    for name in [name for name in os.environ if name.startswith("SM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SM_MODEL_DIR", "/opt/ml/model")
    monkeypatch.setenv("SM_CURRENT_HOST", "algo-1")
    job = replace(JOB, instance_type="ml.p4d.24xlarge", config={"trainer": {"strategy": "smddp"}})
    assert container.command(job) == "exec $SM_PYTHON_CMD -m w2v_lightning.sagemaker.mpirun"
    assert "torchrun" in container.command(replace(job, instance_type="ml.g4dn.12xlarge"))
    text = " ".join(mpirun(Hosts(("algo-1", "algo-2"), "algo-1", "ml.p4d.24xlarge", "here"), "eth0"))
    assert "--host algo-1:8,algo-2:8 -np 16 " in text
    for exported in ("SMDATAPARALLEL_USE_HOMOGENEOUS=1", "SMDATAPARALLEL_SERVER_ADDR=algo-1", "SM_MODEL_DIR"):
        assert f"-x {exported} " in text
    assert "SM_CURRENT_HOST" not in text  # differs between hosts
    assert text.endswith("smddprun python3 -m mpi4py -m w2v_lightning.sagemaker.container")
    alone = " ".join(mpirun(Hosts(("algo-1",), "algo-1", "ml.p4d.24xlarge", "here"), "eth0"))
    assert "-np 8 " in alone
    assert "SMDATAPARALLEL_USE_SINGLENODE=1" in alone
    assert "SERVER_ADDR" not in alone


# ---- options of fit --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_fit_finds_sagemakers_places(tmp_path, monkeypatch, capsys):
    """`fit` itself parses the options; they override those of the run's config."""
    monkeypatch.chdir(tmp_path)
    config = {
        "model": {"pretrained": None, "config": tiny.TINY_CONFIG},
        "data": {"root": "s3://bucket/data"},
        "resume": "never",
        "ckpt_path": "s3://bucket/from.ckpt",
        "checkpoint": {"dirpath": "elsewhere"},
        "trainer": {
            "callbacks": [{"class_path": "lightning.pytorch.callbacks.DeviceStatsMonitor"}],
            "accelerator": "cpu",
        },
    }
    Path("config.yaml").write_text(json.dumps(config))
    assert "--data.root=s3://bucket/data" in container.fit_args(config, None, "auto")
    args = container.fit_args(config, "/opt/ml/input/data/data", "auto")
    with pytest.raises(SystemExit):
        cli.main([*args, "--print_config"])
    parsed = yaml.safe_load(capsys.readouterr().out)
    found = parsed["data"]["root"], parsed["resume"], parsed["ckpt_path"]
    assert found == ("/opt/ml/input/data/data", "auto", None)
    assert parsed["checkpoint"]["dirpath"] == "/opt/ml/checkpoints"
    assert parsed["trainer"]["default_root_dir"] == container.TENSORBOARD
    names = [callback["class_path"].rpartition(".")[2] for callback in parsed["trainer"]["callbacks"]]
    assert names == ["DeviceStatsMonitor", "MetricLines", "ModelHandover"]


BEGINNINGS = [  # options of the config, and the option `resume` at every start of the job
    ({}, "auto"),
    ({"resume": "never"}, "auto"),
    ({"resume": "must", "ckpt_path": "last"}, "auto"),
    ({"resume": "s3://bucket/from.ckpt", "ckpt_path": None}, "s3://bucket/from.ckpt"),
    ({"resume": "auto", "ckpt_path": "s3://bucket/from.ckpt"}, "s3://bucket/from.ckpt"),
]


@pytest.mark.parametrize(
    ("has_ended", "max_steps", "goes_on"), [(True, 8, "PATH"), (True, 9, "auto"), (False, 8, "auto")]
)
def test_a_run_that_has_ended_goes_on_from_its_end_for_the_sake_of_its_model(tmp_path, has_ended, max_steps, goes_on):
    path = str(tmp_path / "step-00000008.ckpt")
    files.save(smallest_checkpoint(8), path)
    limits = {"max_steps": "8", "max_epochs": "None", "max_time": "None"}
    segment = {"started": "2026", "end": "finished" if has_ended else "Preempted", "limits": limits}
    (tmp_path / "run_history.json").write_text(json.dumps([segment]))
    config = {"trainer": {"max_steps": max_steps, "max_epochs": None}}
    for options, otherwise in BEGINNINGS:
        found = container.resume_option(config | options, tmp_path)
        assert found == (path if goes_on == "PATH" else otherwise)


def test_gpus_that_are_paid_for_must_be_seen(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"ml\.g4dn\.12xlarge has 4 GPU\(s\), torch .* sees 0: .*--image"):
        container.check_gpus(GPU_JOB)
    with pytest.raises(InputError, match=r"has 4 GPU\(s\)"):  # as if nvidia-smi had failed
        container.check_gpus(GPU_JOB | {"SM_NUM_GPUS": "0"})
    container.check_gpus({"SM_CURRENT_INSTANCE_TYPE": "ml.c5.xlarge", "SM_NUM_GPUS": "0"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    container.check_gpus(GPU_JOB)


# ---- the failure file ------------------------------------------------------------------------------------------------


def end_with(error, tmp_path, monkeypatch):
    """Return the status of a process in which `fit` ends with `error`, and its failure file."""

    def fit(_):
        raise error

    monkeypatch.setattr(container, "_fit", fit)
    path = tmp_path / "output" / "failure"
    environ = {"SM_OUTPUT_FAILURE": str(path), "SM_CURRENT_HOST": "algo-2", "RANK": "5"}
    try:
        status = container.main(environ)
    except SystemExit as end:
        status = end.code
    except RuntimeError:
        status = 1  # Python's status for an exception
    finally:
        signals.sigterm.stop()
    return status, path.read_text() if path.exists() else None


def test_wrong_input_is_its_one_line(tmp_path, monkeypatch, capsys):
    status, text = end_with(InputError("data.root is missing."), tmp_path, monkeypatch)
    assert (status, text) == (2, "algo-2, rank 5: data.root is missing.")
    assert capsys.readouterr().err == "error: data.root is missing.\n"


def test_an_exception_has_type_message_and_its_last_frames(tmp_path, monkeypatch):
    status, text = end_with(RuntimeError("CUDA error " + 2000 * "x"), tmp_path, monkeypatch)
    assert status == 1
    assert text.startswith("algo-2, rank 5: RuntimeError: CUDA error xxx")
    assert re.search(r"\n  tests/sagemaker/test_entrypoint\.py:\d+ fit: raise error$", text)
    assert 600 < len(text) <= 1024


def test_the_frames_nearest_to_the_error_are_kept():
    def deeper(depth):
        return deeper(depth - 1) if depth else 1 / 0

    with pytest.raises(ZeroDivisionError) as raised:
        deeper(50)
    text = failure_file.reason(raised.value, "algo-1, rank 0")
    assert 900 < len(text) <= failure_file.MAX_CHARACTERS
    assert text.endswith("deeper: return deeper(depth - 1) if depth else 1 / 0")


def test_preemption_says_how_to_go_on_and_is_no_success(tmp_path, monkeypatch):
    status, text = end_with(Preempted(signals.PREEMPTED), tmp_path, monkeypatch)
    assert status == 75
    assert text.startswith("algo-2, rank 5: SIGTERM: ")
    assert "resubmit" in text


def test_a_good_end_leaves_no_failure(tmp_path, monkeypatch):
    assert end_with(SystemExit(0), tmp_path, monkeypatch) == (0, None)


def test_the_first_error_of_many_processes_stays(tmp_path):
    path = tmp_path / "output" / "failure"
    texts = [f"rank {number}: " + 5000 * str(number) for number in range(8)]
    with ThreadPool(8) as pool:
        written = pool.map(lambda text: failure_file.write(text, path), texts)
    assert sum(written) == 1
    assert path.read_text() == texts[written.index(True)][:1024]
    assert [file.name for file in path.parent.iterdir()] == ["failure"]


# ---- metrics and model -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the output of a real, tiny run with our callbacks, and the parent folder of SM_MODEL_DIR."""
    folder = tmp_path_factory.mktemp("trained")
    corpus = tiny.write_corpus(folder / "corpus")
    code = f"""if True:
        import tiny
        from w2v_lightning.sagemaker.container_callbacks import MetricLines, ModelHandover
        from w2v_lightning import Wav2Vec2CTC
        from w2v_lightning.callbacks.export import ExportBest
        from w2v_lightning.telemetry.throughput import Throughput
        callbacks = [MetricLines(every_s=0), ModelHandover(), Throughput(), ExportBest()]
        module = Wav2Vec2CTC(None, tiny.TINY_CONFIG, freeze_feature_encoder=False)
        trainer = tiny.trainer({str(folder / "runs")!r}, max_epochs=2, callbacks=callbacks, log_every_n_steps=1)
        trainer.fit(module, datamodule=tiny.data({str(corpus)!r}))
    """
    environment = os.environ | {"SM_MODEL_DIR": str(folder / "model"), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, folder


def test_sagemakers_expressions_find_every_metric_that_training_prints(trained):
    out, _ = trained
    found = {
        metric["name"]: [match[1] for line in out.splitlines() if (match := re.search(metric["regex"], line))]
        for metric in metric_definitions()
    }
    assert {name for name, values in found.items() if values} == set(METRICS) - {"val_accuracy"}  # pre-training only
    assert len(found["val_wer"]) == 2  # a line for each validation
    printed = re.findall(r"val_wer=(\S+)", out)
    assert found["val_wer"] == printed  # all of the number
    assert all(float(value) > 0 for values in found.values() for value in values)


def test_the_exported_model_is_moved_to_where_sagemaker_packs_it(trained):
    from transformers import AutoModelForCTC, AutoProcessor

    _, folder = trained
    assert AutoModelForCTC.from_pretrained(folder / "model").config.hidden_size == tiny.TINY_CONFIG["hidden_size"]
    assert AutoProcessor.from_pretrained(folder / "model").feature_extractor.sampling_rate == 16_000
    assert not [path for path in (folder / "model").iterdir() if path.name.startswith(".")]
    assert not list((folder / "runs").rglob("*.safetensors"))


def test_a_model_is_complete_or_has_no_config(tmp_path, monkeypatch):
    source, target = tmp_path / "source", tmp_path / "model"
    source.mkdir()
    for name in ("config.json", "model.safetensors", "vocab.json"):
        (source / name).write_text(name)
    order, replace_ = [], os.replace

    def fails_at_the_third(old, new):
        order.append(new.name)
        if len(order) == 3:
            raise OSError("killed")
        replace_(old, new)

    monkeypatch.setattr(container_callbacks.os, "replace", fails_at_the_third)
    with pytest.raises(OSError, match="killed"):
        container_callbacks.move_into(source, target)
    assert order[-1] == "config.json"
    assert sorted(path.name for path in target.iterdir()) == ["model.safetensors", "vocab.json"]
    monkeypatch.undo()
    container_callbacks.move_into(source, target)
    assert (target / "config.json").read_text() == "config.json"
    assert not source.exists()
