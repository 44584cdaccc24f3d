"""The wheel has all that its commands need: built, installed outside of the checkout, and used there."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[2]
LIMIT_S = 600


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Run a command of the installed wheel in a folder of its own; returns what it printed and its exit status."""
    root = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", root, CHECKOUT]
    subprocess.run(build, check=True, capture_output=True, timeout=LIMIT_S)
    (wheel,) = root.glob("*.whl")
    environment = root / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True, timeout=LIMIT_S)
    python = environment / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True, capture_output=True, timeout=LIMIT_S)
    # The dependencies are this environment's. Its .pth files, and so an editable checkout, are not read from there.
    (site_packages,) = environment.glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    folder = root / "work"
    folder.mkdir()

    def run(*args, status=0):
        command = [environment / "bin" / "w2v-lightning", *args]
        variables = os.environ | {"W2V_LIGHTNING_CACHE": str(root / "cache")}
        done = subprocess.run(
            command, cwd=folder, env=variables, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    run.folder, run.cache, run.package = folder, root / "cache", site_packages / "w2v_lightning"
    where = [python, "-c", "import w2v_lightning; print(w2v_lightning.__file__)"]
    found = subprocess.run(where, cwd=folder, capture_output=True, text=True, check=True).stdout
    assert Path(found.strip()).is_relative_to(environment)
    return run


def test_it_lists_its_commands(installed):
    assert {"fit", "submit", "plan", "study"} <= set(installed("--help").split())


def test_it_carries_types_configs_and_measurements(installed):
    assert (installed.package / "py.typed").is_file()
    configs = {path.name for path in (installed.package / "configs").glob("*.yaml")}
    assert configs == {path.name for path in (CHECKOUT / "configs").glob("*.yaml")}
    measurements = CHECKOUT / "w2v_lightning" / "catalog" / "measurements"
    assert len(list((installed.package / "catalog" / "measurements").rglob("run.json"))) == len(
        list(measurements.rglob("run.json"))
    )


def test_it_runs_the_demo_and_checks_and_transcribes_its_speech(installed):
    fast = ["--trainer.max_epochs", "1", "--data.num_workers", "0", "--trainer.enable_progress_bar", "false"]
    installed("fit", "--config", str(installed.package / "configs" / "demo.yaml"), *fast)
    (model,) = installed.folder.glob("runs/**/model")
    speech = next(installed.cache.glob("**/*.flac"))
    installed("transcribe", str(speech), "--model", str(model))
    installed("prepare", str(speech.parents[2]), "--out", "prepared")
    installed("check", "prepared/manifest.jsonl", "--report", "check.html")
    assert "<svg" in (installed.folder / "check.html").read_text()


def test_it_plans_with_the_measurements_that_ship(installed):
    config = str(installed.package / "configs" / "librispeech_100h.yaml")
    text = installed("plan", "--config", config, "--hours", "100", "--deadline", "1d", "--region", "us-east-1")
    assert text.startswith("Best: ")


def test_it_submits_without_being_told_where_the_checkout_is(installed):
    config = str(installed.package / "configs" / "librispeech_100h.yaml")
    places = [
        "--data",
        "s3://bucket/data",
        "--output",
        "s3://bucket/runs",
        "--role",
        "arn:aws:iam::111122223333:role/r",
    ]
    machine = ["--instance-type", "ml.g4dn.12xlarge", "--region", "us-east-1", "--spot"]
    request = json.loads(installed("submit", "--config", config, *machine, *places, "--dry-run"))
    assert request["ResourceConfig"]["InstanceType"] == "ml.g4dn.12xlarge"


def test_it_reports_on_a_study(installed):
    study = str(installed.package / "catalog" / "measurements" / "cpu")
    installed("study", "report", study, "--html", "report.html")
    assert "<svg" in (installed.folder / "report.html").read_text()
