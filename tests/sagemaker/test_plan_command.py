"""Command `plan`: from measured runs to a command line that `submit` accepts."""

import json
import os
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from sample_job import DATA, FULL_CONFIG, JOB
from synthetic_study import EPOCH, parameters, runs, t4

from w2v_lightning.config import resolve
from w2v_lightning.errors import InputError
from w2v_lightning.perf_model import runs as run_files
from w2v_lightning.perf_model.fitting import fit
from w2v_lightning.planner import workload
from w2v_lightning.planner.candidates import COUNTS
from w2v_lightning.planner.workload import Model
from w2v_lightning.sagemaker import job_summary, plan_command, submit
from w2v_lightning.sagemaker.checks import check_budget
from w2v_lightning.sagemaker.command import main
from w2v_lightning.sagemaker.plan_command import hours_of, steps_of

PLAN = ["plan", "--config", "a.yaml", "--region", "us-east-1"]
HOURS = [*PLAN, "--hours", "100", "--epochs", "20"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Three configurations of g4dn: 1, 2 and 4 instances of one GPU."""
    folder = tmp_path_factory.mktemp("study")
    setups = [t4(1), t4(1, hosts=2), t4(1, hosts=4)]
    for run in runs(parameters(setups), setups, seed=1):
        run_files.write(run, folder / run.name)
    return folder


@pytest.fixture(autouse=True)
def here(monkeypatch, study):
    """Remove the machine's settings, and replace LightningCLI, which takes seconds, by a config with the overrides."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "W2V_LIGHTNING_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("W2V_LIGHTNING_STUDY", str(study))
    monkeypatch.setenv("COLUMNS", "220")
    for module in (plan_command, submit):
        monkeypatch.setattr(module, "resolve", lambda files, overrides: FULL_CONFIG | {"given": [files, overrides]})


def printed(capsys, *args):
    status = main(list(args))
    return status, capsys.readouterr().out


def submit_line(out):
    return shlex.split(next(line for line in out.splitlines() if "w2v_lightning submit" in line))


# ---- what is printed ------------------------------------------------------------------------------------------------


def test_the_cheapest_in_time_is_on_top_with_all_that_it_rests_on(capsys):
    status, out = printed(capsys, *HOURS, "--deadline", "6h", "--budget", "50")
    assert status == 0
    assert re.match(
        r"Best: \d+ x ml\.\S+, (spot|on demand), .* \(90 %: .*\), \$[\d.]+ \(90 %: \$[\d.]+\), predicted\n", out
    )
    for words in (
        r"task +\d+ steps: --epochs 20, \d+ steps an epoch",
        r"100 h in steps like those of 3 studied runs with",
        r"limits +6 h and \$50, which 9 of 10 runs must meet",
        r"risk +[\d.]+% of 2000 simulated runs miss the deadline",
        r"why +the cheapest within the limits of \d+ candidates",
        r"the fastest: ",
        r"step +[\d.]+ s: compute \d+%",
        r"basis +predicted, from 3 measured runs of ",
        r"price +\$[\d.]+ an hour as of \d{4}.* \(up to .* old; .*\), us-east-1",
        r"assumed +.* of start-up",
        r"Not included: validation",
        r"The oldest price used is of 2024 \(up to \d+ months old\)",
        r"Excluded, because w2v_lightning/catalog/prices\.csv has no price in us-east-1: .*ml\.g4dn\.16xlarge",
    ):
        assert re.search(words, out), words


def test_the_front_is_a_table_with_the_best_in_it(capsys):
    _, out = printed(capsys, *HOURS, "--deadline", "6h")
    best = re.match(r"Best: (\d+ x \S+, (?:spot|on demand)),", out)[1]
    instances, time = r"(\d+ x ml\.\S+, (?:spot|on demand))", r"(?:(\d+) h )?(\d+) min(?: (\d+) s)?"
    rows = re.findall(rf"^{instances} +{time} +{time} +([\d.]+) ", out, re.MULTILINE)
    assert best in [row[0] for row in rows]
    seconds = [3600 * int(h or 0) + 60 * int(m) + int(s or 0) for _, h, m, s, *_ in rows]
    assert len(rows) > 3
    assert seconds == sorted(seconds, reverse=True)
    assert [float(row[-1]) for row in rows] == sorted(float(row[-1]) for row in rows)


def test_spot_says_what_it_was_assumed_to_be(capsys):
    _, out = printed(capsys, *HOURS, "--spot", "only")
    assert "on demand" not in re.sub(r"Not included.*", "", out)
    assert re.search(r"saving +(\d+ to \d+ %: assumed|around \d+ %, EC2's discount for spot)", out)
    assert "one interruption in 10 instance-hours: assumed; AWS guarantees no rate" in out
    assert "30 min of waiting for spot instances: assumed" in out
    assert re.search(r"interrupted +[\d.]+ times", out)
    _, out = printed(capsys, *HOURS, "--spot", "never")
    assert ", spot" not in out
    assert "interruption" not in out


def test_measured_is_what_was_run(study, monkeypatch):
    """Candidates with the GPUs, model, micro-batches and loader workers of a run are measured."""
    found = run_files.read_all(study)
    setup = found[0].setup
    model = Model(setup.flops_per_audio_s, setup.gradient_bytes, setup.gradient_buckets)
    monkeypatch.setattr(workload, "model_of", lambda *_: model)
    data = FULL_CONFIG["data"] | {"num_workers": setup.loader_workers, "device_seconds": "auto"}
    monkeypatch.setattr(plan_command, "resolve", lambda *_: FULL_CONFIG | {"data": data})
    options, _ = plan_command.parse_options([*HOURS[1:], "--spot", "never", "--instance_type", "ml.g4dn.2xlarge"])
    made = plan_command.make_plan(options, [], found, fit(found), "here")
    measured = [one.candidate.count for one in made.estimates if one.basis == "measured"]
    assert measured == [1, 2, 4]
    assert [one.candidate.count for one in made.estimates] == [count for count in COUNTS if count <= 16]


@pytest.fixture
def resolved(monkeypatch):
    """Make the config have these options."""

    def change(**options):
        changed = {k: {**FULL_CONFIG[k], **v} if isinstance(v, dict) else v for k, v in options.items()}
        monkeypatch.setattr(plan_command, "resolve", lambda *_: FULL_CONFIG | changed)

    return change


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"checkpoint_every": "never"}, "spot"),
        ({"trainer": {"devices": 1}}, "12xlarge"),
        ({"trainer": {"strategy": "fsdp2"}, "checkpoint_every": "500 steps"}, "g4dn"),
        ({"data": {"device_seconds": 1600}, "trainer": {"devices": 1}}, "1 x ml.g4dn.xlarge"),
    ],
)
def test_what_submit_would_refuse_or_would_not_fit_is_not_recommended(capsys, resolved, options, refused):
    resolved(**options)
    status, out = printed(capsys, *HOURS)
    assert status == 0
    front = out.partition("Pareto-optimal candidates")[2].partition("Not included")[0]
    assert refused not in front
    assert re.search(rf"Excluded: \d+ \(.*{refused}", out)


def test_a_job_of_more_than_28_days_is_not_recommended(capsys):
    _, out = printed(capsys, *PLAN, "--hours", "100", "--epochs", "5000", "--spot", "never")
    assert "takes longer than 28 days, the limit of a SageMaker training job" in out
    assert float(re.search(r"--max[-_]hours (\S+)", out)[1]) <= 672


@pytest.mark.parametrize(
    ("pretrained", "remark"),
    [("myself/speech-model", "myself/speech-model is assumed to be a base model"), ("facebook/wav2vec2-xls-r-1b", "")],
)
def test_a_model_of_unknown_size_is_said_to_be_taken_for_base(capsys, resolved, pretrained, remark):
    resolved(model={"pretrained": pretrained})
    _, out = printed(capsys, *HOURS, "--spot", "never")
    assert ("is assumed to be a base model" in out) == bool(remark)
    assert remark in out


def test_limits_that_nothing_keeps(capsys):
    status, out = printed(capsys, *HOURS, "--deadline", "6m")
    assert status == 1
    assert re.match(r"No recommendation: the fastest takes [\d.]+ h \(90 % bound\): ", out)
    assert "w2v_lightning submit" not in out
    status, out = printed(capsys, *HOURS, "--deadline", "1h", "--budget", "0.5")
    assert status == 1
    assert re.search(r"the cheapest within the deadline costs \$[\d.]+ \(90 % bound\): \d+ x ml\.", out)
    _, out = printed(capsys, *HOURS, "--budget", "0.5")
    assert re.search(r"No recommendation: the cheapest costs \$[\d.]+ \(90 % bound\): \d+ x ml\.", out)


# ---- the line -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spot", ["only", "never"])
def test_the_line_makes_the_job_that_was_planned(capsys, monkeypatch, spot):
    overrides = ["--data.batch_seconds", "1600", "--trainer.gradient_clip_val", "0.5"]
    _, out = printed(capsys, *HOURS, "--spot", spot, "--budget", "40", "--config", "it's mine.yaml", *overrides)
    line = submit_line(out)
    assert line[:4] == ["python", "-m", "w2v_lightning", "submit"]
    for name, value in (("ROLE", JOB.role), ("DATA", JOB.data), ("OUTPUT", JOB.output)):
        monkeypatch.setenv(f"W2V_LIGHTNING_{name}", value)
    options, of_fit = submit.parse_options(line[4:])
    job = submit.new_job(options, of_fit)
    best = re.match(r"Best: (\d+) x (\S+), (spot|on demand), (.*) \(90 %: (?:(\d+) h )?(\d+) min", out)
    assert (str(job.count), job.instance_type, job.is_spot) == (best[1], best[2], best[3] == "spot")
    assert job.region == "us-east-1"
    assert 0.5 * job.max_hours < int(best[5] or 0) + int(best[6]) / 60 + 0.5
    assert job.config["given"] == [
        ["a.yaml", "it's mine.yaml"],
        ["--trainer.max_epochs", "20", "--trainer.max_steps", "-1", *overrides],
    ]
    check_budget(job, options.budget)  # which counts all of --max_hours
    assert (options.budget is None) == (spot == "only")


def test_a_job_within_a_tight_budget_is_stopped_before_it_costs_more(capsys, monkeypatch):
    only = [*HOURS, "--spot", "never", "--instance_type", "ml.g4dn.2xlarge", "--most_instances", "1"]
    _, out = printed(capsys, *only)
    usd_p90 = float(re.search(r"\(90 %: \$([\d.]+)\)", out)[1])
    _, out = printed(capsys, *only, "--budget", f"{1.02 * usd_p90:.2f}")
    for name, value in (("ROLE", JOB.role), ("DATA", JOB.data), ("OUTPUT", JOB.output)):
        monkeypatch.setenv(f"W2V_LIGHTNING_{name}", value)
    options, of_fit = submit.parse_options(submit_line(out)[4:])
    assert options.budget == pytest.approx(1.02 * usd_p90, abs=0.01)
    check_budget(submit.new_job(options, of_fit), options.budget)
    assert options.max_hours * 0.94 > usd_p90


def test_without_epochs_the_config_stays_as_it_is(capsys):
    _, out = printed(capsys, *PLAN, "--hours", "100")
    assert re.search(r"task +1000 steps: trainer\.max_steps 1000", out)
    assert not any("max_" in part for part in submit_line(out)[4:] if part.startswith("--trainer"))


@pytest.mark.slow
def test_the_line_as_it_is_is_a_job_that_submit_accepts(capsys, monkeypatch):
    """LightningCLI reads a config of the project both times, and all checks that need no network are run."""
    for module in (plan_command, submit):
        monkeypatch.setattr(module, "resolve", resolve)
    config = str(Path(__file__).parents[2] / "configs" / "librispeech_100h.yaml")
    _, out = printed(capsys, "plan", "--config", config, *HOURS[3:], "--deadline", "12h", "--budget", "60")
    places = "--role", JOB.role, "--data", JOB.data, "--output", JOB.output
    assert main([*submit_line(out)[3:], *places, "--dry-run"]) == 0
    request = json.loads(capsys.readouterr().out)
    best = re.match(r"Best: (\d+) x (\S+), (spot|on demand)", out)
    resources = request["ResourceConfig"]
    assert (str(resources["InstanceCount"]), resources["InstanceType"]) == (best[1], best[2])
    assert request.get("EnableManagedSpotTraining", False) == (best[3] == "spot")


# ---- input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "hours"), [("6h", 6), ("90m", 1.5), ("2d", 48), ("1.5 h", 1.5)])
def test_a_time_has_a_unit(text, hours):
    assert hours_of("--deadline", text) == hours


@pytest.mark.parametrize("text", ["6", "0h", "h", "-1h", "6 hours", "six"])
def test_other_times_are_refused(text, capsys):
    assert main([*HOURS, f"--deadline={text}"]) == 2
    assert f"error: --deadline is {text!r}: give a number and its unit, such as 90m" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"),
    [("--epochs", "0"), ("--epochs", "1.5"), ("--budget", "-3"), ("--budget", "$50"), ("--most_instances", "0")],
)
def test_numbers_that_cannot_be(option, value, capsys):
    assert main([*PLAN, "--hours", "100", option, value]) == 2
    message = rf"error: {option} is '?{re.escape(value)}'?: must be (above 0|a whole number|a number)\.\n"
    assert re.fullmatch(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("trainer", "epochs", "steps", "words"),
    [
        ({"max_steps": 1000, "max_epochs": -1}, 20, 20 * EPOCH.steps, "--epochs 20"),
        ({"max_steps": 1000, "max_epochs": -1}, None, 1000, "trainer.max_steps 1000"),
        ({"max_steps": 1000, "max_epochs": 2}, None, 2 * EPOCH.steps, "trainer.max_epochs 2"),
        ({"max_steps": -1, "max_epochs": 3}, None, 3 * EPOCH.steps, "trainer.max_epochs 3"),
    ],
)
def test_how_long_is_trained(trainer, epochs, steps, words):
    found, why = steps_of(trainer, EPOCH, epochs)
    assert found == steps
    assert words in why


def test_nothing_unknown_is_replaced_by_a_default(tmp_path, capsys, monkeypatch):
    with pytest.raises(InputError, match="--epochs"):
        steps_of({"max_steps": -1, "max_epochs": None}, EPOCH, None)
    assert main([*HOURS, "--study", str(tmp_path)]) == 2
    assert "has no run.json" in capsys.readouterr().err
    assert main([*HOURS[:-4], "--region", "eu-central-1", "--hours", "100"]) == 2
    assert re.search(r"eu-central-1.*study prices --refresh", capsys.readouterr().err)
    for args in (PLAN, [*HOURS, "--manifest", "a.jsonl"]):
        assert main(args) == 2
        assert "error: plan: give either --hours, the hours of training audio, or --manifest" in capsys.readouterr().err


def test_a_manifest_takes_the_place_of_hours(tmp_path, capsys):
    manifest = tmp_path / "train.jsonl"
    rows = [{"audio_filepath": f"{i}.flac", "duration": 4.0 + i % 12, "text": "A"} for i in range(2000)]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, out = printed(
        capsys, *PLAN, "--manifest", str(manifest), "--epochs", "5", "--instance_type", "ml.g5.xlarge"
    )
    assert status == 0
    assert re.search(r"planned from .*train\.jsonl: 2000 utterances, 5\.2\d+ h", out)


# ---- what `submit` says of a job ------------------------------------------------------------------------------------


def time_line(job):
    return next(line for line in job_summary.summary(job, 0.1).splitlines() if line.startswith("time "))


def job_of(**trainer):
    config = FULL_CONFIG | {"trainer": FULL_CONFIG["trainer"] | trainer, "data": {**DATA, "duration_spread": 1.05}}
    return replace(JOB, config=config, instance_type="ml.g4dn.2xlarge", is_spot=False)


def test_a_job_is_expected_to_take_as_long_as_runs_did(study):
    (measured,) = [run for run in run_files.read_all(study) if run.setup.hosts == 2]
    line = time_line(job_of(max_steps=20_000))
    found = re.search(
        r"expected: (\d+) h (\d+) min \(90 %: (\d+) h (\d+) min\), \w+ from 3 measured runs of .*; MORE", line
    )
    hours = int(found[1]) + int(found[2]) / 60
    assert hours == pytest.approx(20_000 * measured.step_s / 3600, rel=0.1)
    assert "MORE THAN --max_hours" not in time_line(job_of(max_steps=100))


def test_what_is_not_known_is_said(monkeypatch, tmp_path):
    assert "expected duration unknown: trainer.max_epochs limits the training" in time_line(
        job_of(max_steps=-1, max_epochs=5)
    )
    monkeypatch.setenv("W2V_LIGHTNING_STUDY", str(tmp_path / "none"))
    assert re.search("expected duration unknown: .* has no run.json", time_line(job_of()))
