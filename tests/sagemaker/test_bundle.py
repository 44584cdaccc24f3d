"""Files that are uploaded with a job: code and configs, and nothing else."""

import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import sample_job
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from w2v_lightning.catalog.images import image_uri
from w2v_lightning.errors import InputError
from w2v_lightning.sagemaker import bundle

JOB = replace(
    sample_job.JOB,
    config={"data": {"root": "/home/me/LibriSpeech"}, "model": {"note": "l'été"}},
    data="s3://bucket/data",
)
PACKAGE = bundle.PACKAGE


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Replace this package by a small one; return its folder."""
    root = tmp_path / "w2v_lightning"
    for name in ("data/a.py", "b.py", "catalog/prices.csv", "configs/c.yaml"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x = 1\n")
    monkeypatch.setattr(bundle, "PACKAGE", root)
    return root


def names(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


OWN = {"config.yaml", "requirements.txt", "constraints.txt"}


def test_it_holds_the_package_and_nothing_else(package, tmp_path):
    (tmp_path / "outside.py").write_text("x = 1\n")
    (package / "linked.py").symlink_to(tmp_path / "outside.py")
    for name in (
        ".env",
        ".hidden/a.py",
        "key.pem",
        ".aws/credentials.yaml",
        "train.tar",
        "weights.ckpt",
        "runs/a.ckpt",
    ):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("x = 1\n")
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "a.pyc").write_text("x = 1\n")
    bundle.write(JOB, tmp_path / "bundle")
    expected = {f"w2v_lightning/{name}" for name in ("data/a.py", "b.py", "catalog/prices.csv", "configs/c.yaml")}
    assert names(tmp_path / "bundle") == expected | OWN


def test_this_packages_code_is_whole(tmp_path):
    bundle.write(JOB, tmp_path)
    sources = {f"w2v_lightning/{path.relative_to(PACKAGE)}" for path in PACKAGE.rglob("*.py")}
    assert sources - names(tmp_path) == {"w2v_lightning/catalog/measurements/__init__.py"}
    assert sum(path.stat().st_size for path in tmp_path.rglob("*")) < 4 * 2**20
    code = "from w2v_lightning.sagemaker import container, mpirun; print(container.__file__, mpirun.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.count(str(tmp_path)) == 2


def test_the_config_is_the_runs_and_its_data_are_on_s3(package, tmp_path):
    bundle.write(JOB, tmp_path / "bundle")
    config = yaml.safe_load((tmp_path / "bundle" / "config.yaml").read_text())
    assert config == {"data": {"root": "s3://bucket/data"}, "model": {"note": "l'été"}}
    assert JOB.config["data"]["root"] == "/home/me/LibriSpeech"


def test_a_size_that_cannot_be_code_is_refused(package, tmp_path):
    (package / "configs" / "large.yaml").write_bytes(b"#" * (11 << 20))
    with pytest.raises(
        InputError, match=r"11 MiB, more than 10: the largest files are w2v_lightning/configs/large\.yaml"
    ):
        bundle.write(JOB, tmp_path / "bundle")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("key: AKIA" + "ABCDEFGHIJ234567", "an AWS access key"),
        ("aws_secret_access_key = " + "abcd/EFGH+" * 4, "an AWS secret key"),
        ("-----BEGIN RSA " + "PRIVATE KEY-----", "a private key"),
        ("token: hf_" + "aB3" * 11 + "x", "a Hugging Face token"),
    ],
)
@pytest.mark.parametrize("place", ["w2v_lightning/configs/mine.yaml", "w2v_lightning/data/keys.py"])
def test_what_looks_like_a_credential_is_refused_and_not_shown(package, tmp_path, place, text, what):
    (package.parent / place).write_text(f"{text}\n")
    with pytest.raises(InputError, match=f"{re.escape(place)} contains what looks like {what}") as refused:
        bundle.write(JOB, tmp_path / "bundle")
    assert text not in str(refused.value)


def test_a_credential_in_the_resolved_config_is_found(package, tmp_path):
    job = replace(JOB, config={"trainer": {"logger": {"token": "AKIA" + "ABCDEFGHIJ234567"}}})
    with pytest.raises(InputError, match=r"config\.yaml contains what looks like an AWS access key"):
        bundle.write(job, tmp_path / "bundle")


def test_requirements_are_the_packages_without_the_images_own_pair():
    wanted = [Requirement(line) for line in bundle.requirements(JOB)]
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    dependencies = [Requirement(line) for line in project["dependencies"]]
    left_out = {str(each) for each in dependencies} - {str(each) for each in wanted}
    assert {Requirement(each).name for each in left_out} == {"torch", "torchaudio"}
    assert len(dependencies) - len(wanted) == 2
    assert any(each.name == "torchmetrics" for each in wanted)
    assert not [each for each in wanted if each.name == "s3fs"]
    streamed = bundle.requirements(replace(JOB, input_mode="stream"))
    assert [line for line in streamed if line.startswith("s3fs")]
    assert not [line for line in streamed if line.startswith("sagemaker")]


@pytest.mark.parametrize(
    ("image", "constraints"),
    [
        (JOB.image, ["torch==2.11.*"]),
        ("1.dkr.ecr.eu-west-1.amazonaws.com/pytorch-training:2.10.0-gpu-py313-cu130-ubuntu22.04", ["torch==2.10.*"]),
        ("1.dkr.ecr.eu-west-1.amazonaws.com/pytorch:2.13.0-cu133-amzn2023-sagemaker", ["torch==2.13.*"]),
        ("1.dkr.ecr.eu-west-1.amazonaws.com/my-own:latest", []),
    ],
)
def test_pip_is_held_to_the_images_torch(image, constraints):
    assert bundle.constraints(image) == constraints


SMDDP_PINS = ["torch==2.5.*", "torchaudio==2.5.*", "transformers<5.19", "numpy<2"]


@pytest.mark.parametrize(
    ("image", "uses_mpirun", "constraints"),
    [
        (image_uri("2.5", "us-east-1"), True, SMDDP_PINS),
        (image_uri("2.5", "us-east-1"), False, SMDDP_PINS),
        ("1.dkr.ecr.eu-west-1.amazonaws.com/my-own:latest", True, SMDDP_PINS),
        ("1.dkr.ecr.eu-west-1.amazonaws.com/my-own:2.11-smddp", True, ["torch==2.11.*"]),
    ],
)
def test_pip_is_held_to_packages_that_work_with_the_torch_of_smddp(image, uses_mpirun, constraints):
    assert bundle.constraints(image, uses_mpirun) == constraints


# ---- beside an image's pair ------------------------------------------------------------------------------------------

# torch and torchaudio of AWS's images
PAIRS = {"2.5.1+cu124": "2.5.1", "2.11.0+cu130": "2.11.0", "2.13.0+cu133": "2.11.0"}


def python_of_the_images():
    """Return Python 3.12 if it is installed, otherwise this Python."""
    home = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = [*sorted(home.glob("versions/3.12.*/bin/python3.12")), Path("/usr/bin/python3.12"), Path(sys.executable)]
    return next(str(path) for path in found if path.exists())


def pip(environment, *args):
    return subprocess.run(
        [environment / "bin" / "python", "-m", "pip", *args], capture_output=True, text=True, timeout=500, check=False
    )


def preinstall(environment, name, version):
    """Write the metadata by which pip recognises an installed package, because the real wheels are gigabytes."""
    (site,) = environment.glob("lib/python*/site-packages")
    info = site / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("")
    (info / "INSTALLER").write_text("pip\n")


@pytest.mark.slow
@pytest.mark.parametrize(("torch", "torchaudio"), PAIRS.items())
def test_pip_leaves_the_images_pair_alone(tmp_path, torch, torchaudio):
    environment = tmp_path / "environment"
    subprocess.run([python_of_the_images(), "-m", "venv", environment], check=True, timeout=120)
    preinstall(environment, "torch", torch)
    preinstall(environment, "torchaudio", torchaudio)
    if pip(environment, "download", "--no-deps", "--dest", tmp_path, "filelock").returncode:
        pytest.skip("pip reaches no index")
    image = f"1.dkr.ecr.us-east-1.amazonaws.com/pytorch:{torch.partition('+')[0]}-cu-sagemaker"
    bundle.write(replace(JOB, image=image), tmp_path / "b")
    report = tmp_path / "report.json"
    done = pip(
        environment, "install", "--dry-run", "--quiet", "--report", report, "-r", tmp_path / "b/requirements.txt"
    )
    assert done.returncode == 0, done.stderr
    planned = {row["metadata"]["name"].lower(): row["metadata"] for row in json.loads(report.read_text())["install"]}
    assert {"lightning", "transformers", "soundfile", "jiwer"} <= set(planned)
    assert not {"torch", "torchaudio"} & set(planned)
    assert torch[:4] != "2.5." or Version(planned["transformers"]["version"]) < Version("5.19")
