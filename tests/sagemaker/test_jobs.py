"""Output of `status`, `logs`, `stop`, `list`, `download` and `cost` for the service's answers."""

import io
import re
import tarfile
from functools import cache

import pytest
from sagemaker_server import story

from w2v_lightning.sagemaker import aws_session, logs
from w2v_lightning.sagemaker.command import main

pytest_plugins = ["s3", "sagemaker_server"]

unpacks = pytest.mark.skipif(not hasattr(tarfile, "data_filter"), reason="this Python cannot unpack safely")
TRAINED = {"TrainingTimeInSeconds": 3600, "BillableTimeInSeconds": 1080}


# botocore reads its descriptions of services once per session, which takes longer than a test.
boto_session = cache(aws_session.boto_session)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(aws_session, "boto_session", boto_session)
    monkeypatch.setattr(logs, "POLL_S", 0.0)
    monkeypatch.setattr(logs, "SETTLE_S", 0.0)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def run(capsys):
    """Return a function that runs a command, and returns its exit status, standard output and standard error."""

    def run_command(*args):
        status = main(list(args))
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run_command


def archive(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, body in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
    return buffer.getvalue()


# ---- status, list, stop ---------------------------------------------------------------------------------------------


def test_status_shows_transitions_interruptions_and_saving(account, run):
    spot = ("Starting", "Training", "Interrupted", "Starting", "Training", "Interrupted", "Training", "Completed")
    account.service.story = story(*spot, **TRAINED, FinalMetricDataList=[{"MetricName": "val_wer", "Value": 0.0612}])[
        -1:
    ]
    name = account.submit()
    status, out, _ = run("status", name)
    assert status == 0
    assert tuple(re.findall(r" 1 min 00 s +(\w+) +It is \1", out)) == spot
    assert re.search(r"trained +1 h 00 min, billable 18 min 00 s \(saving 70%\)", out)
    assert re.search(r"interruptions +2 *\n", out)
    assert re.search(r"val_wer +0.0612", out)
    assert f"w2v_lightning download {name}" in out


def test_a_run_stands_for_its_newest_job(account, run):
    older = account.submit("base")
    account.submit("base-100h")  # another run, whose jobs begin with the same word
    newer = account.submit("base")
    _, out, _ = run("status", "base")
    assert newer in out
    assert older not in out
    status, _, err = run("status", "bas")
    assert status == 2
    assert "bas: there is no training job and no run of this name in us-east-1" in err


def test_list_shows_jobs_by_tag(account, run):
    one, other = account.submit("listed-one"), account.submit("listed-other")
    _, out, _ = run("list", "--last", "1000")
    assert one in out
    assert other in out
    _, out, _ = run("list", "--tag", "run=listed-one")
    assert one in out
    assert other not in out
    _, out, _ = run("list", "--tag", "run=nothing")
    assert "No jobs with the tags {'run': 'nothing'} in us-east-1" in out


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--last", "0"), "--last is 0: must be above 0."),
        (("--last", "-1"), "--last is -1: must be above 0."),
        (("--tag", "run"), "--tag is 'run': give KEY=VALUE, such as run=base-100h."),
        (("--tag", "run="), "--tag is 'run=': give KEY=VALUE, such as run=base-100h."),
    ],
)
def test_list_refuses_what_makes_no_sense(run, option, message):
    assert run("list", *option) == (2, "", f"error: {message}\n")


def test_stop_ends_a_job_and_says_how_to_go_on(account, run):
    account.service.story = story("Starting", "Training")
    name = account.submit("halted")
    _, out, _ = run("stop", name)
    assert "StopTrainingJob" in account.service.calls
    assert "120 s to save a checkpoint" in out
    assert "w2v_lightning resubmit halted" in out
    for _ in range(3):
        _, out, _ = run("status", name)
    assert re.search("status +Stopped", out)
    assert "It was stopped; `python -m w2v_lightning resubmit halted` resumes from its checkpoints." in out
    _, out, _ = run("stop", name)
    assert out == f"{name} has already ended: Stopped.\n"
    assert account.service.calls.count("StopTrainingJob") == 1


# ---- logs -----------------------------------------------------------------------------------------------------------


def test_logs_of_all_hosts_are_in_order_of_time(account, run):
    name = account.submit()
    account.print(name, "algo-2", (10, "second"), (30, "fourth"))
    account.print(name, "algo-1", (0, "first"), (20, "third"), (40, "fifth [not markup]"))
    account.print(name + "0", "algo-1", (5, "of another job"))
    status, out, _ = run("logs", name)
    assert status == 0
    assert out.splitlines() == [
        *("algo-1  first", "algo-2  second", "algo-1  third", "algo-2  fourth", "algo-1  fifth [not markup]"),
    ]


def test_follow_prints_each_line_once_and_in_order_until_the_job_ends(account, run):
    account.service.story = story(*["Starting", "Training"] * 4, "Completed")
    polls = iter(range(100))

    def print_more(job, status):
        poll = next(polls)
        if poll:
            account.print(job, "algo-1", (1000 * poll, f"1: {poll}"))
        if poll > 1:  # a poll later than the line of algo-1 before which it belongs
            account.print(job, "algo-2", (1000 * (poll - 1) - 500, f"2: {poll - 1}"))

    account.service.on_status = print_more
    name = account.submit()
    status, out, err = run("logs", name, "--follow")
    assert status == 0
    expected = [f"{host}: {i}" for i in range(1, 8) for host in (2, 1)] + ["1: 8"]
    assert [line.split("  ")[-1] for line in out.splitlines()] == expected
    assert err.count("Training]") == 4
    assert f"{name}: Completed. `python -m w2v_lightning download" in err


def test_follow_of_a_failed_job_shows_the_reason_and_fails(account, run):
    account.service.story = story("Starting", "Training", "Failed", FailureReason="algo-1, rank 0: data: no manifest")
    name = account.submit()
    status, _, err = run("logs", name, "--follow")
    assert status == 1
    assert f"{name}: Failed: algo-1, rank 0: data: no manifest." in err
    assert f"w2v_lightning logs {name}" in err


def test_ctrl_c_leaves_the_job_alone(account, monkeypatch, capsys):
    account.service.story = story("Starting")
    name = account.submit()

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(logs.time, "sleep", interrupt)
    with pytest.raises(SystemExit) as left:
        main(["logs", name, "--follow"])
    assert left.value.code == 130
    assert f"The job continues; to stop it: python -m w2v_lightning stop {name}" in capsys.readouterr().err
    assert "StopTrainingJob" not in account.service.calls


def test_before_a_job_prints_its_status_stands_for_its_lines(account, run):
    account.service.story = story("Starting")
    name = account.submit()
    _, out, _ = run("logs", name)
    assert out == f"No log lines yet: {name} is InProgress, Starting.\n"


# ---- download -------------------------------------------------------------------------------------------------------


@unpacks
def test_download_fetches_model_reports_logs_and_checkpoints(account, run, tmp_path):
    name = account.submit("fetched")
    model = archive(**{"config.json": b"{}", "model.safetensors": b"0" * 1000})
    account.put(f"fetched/jobs/{name}/output/model.tar.gz", model)
    account.put(f"fetched/jobs/{name}/output/output.tar.gz", archive(**{"report.html": b"<html>"}))
    account.put("fetched/tensorboard/version_0/events", b"events")
    account.put("fetched/checkpoints/", b"")
    account.put("fetched/checkpoints/step=10.ckpt", b"weights")
    status, out, _ = run("download", name, "--to", str(tmp_path / "run"), "--checkpoints")
    assert status == 0
    found = {str(path.relative_to(tmp_path / "run")) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {
        *("model/config.json", "model/model.safetensors", "reports/report.html"),
        *("tensorboard/version_0/events", "checkpoints/step=10.ckpt"),
    }
    assert (tmp_path / "run/model/model.safetensors").read_bytes() == b"0" * 1000
    assert len(out.splitlines()) == 4
    status, _, err = run("download", name, "--to", str(tmp_path / "run"))
    assert status == 2
    assert "model already exists" in err


def test_a_job_that_has_left_nothing_is_said_to(account, run, tmp_path):
    account.service.story = story("Starting")
    status, _, err = run("download", account.submit("empty"), "--to", str(tmp_path / "run"))
    assert status == 2
    assert "--checkpoints" in err
    assert not list(tmp_path.iterdir())


BAD_ARCHIVES = {
    "escape": archive(**{"good": b"", "../../escaped": b"x"}),
    "absolute": archive(**{"/tmp/../escaped": b"x"})[:40] + b"damaged",
    "truncated": archive(**{"large": bytes(range(256)) * 4000})[:2000],
    "not an archive": b"<Error/>",
}


@unpacks
@pytest.mark.parametrize("kind", BAD_ARCHIVES)
def test_an_archive_that_is_damaged_or_leads_out_leaves_nothing(account, run, tmp_path, kind):
    name = account.submit("bad")
    account.put(f"bad/jobs/{name}/output/model.tar.gz", BAD_ARCHIVES[kind])
    status, _, err = run("download", name, "--to", str(tmp_path / "run"))
    assert status == 2
    assert f"bad/jobs/{name}/output/model.tar.gz" in err
    assert [path for path in tmp_path.rglob("*") if path.name != "run"] == []


def test_a_python_that_cannot_unpack_safely_fetches_nothing(account, run, tmp_path, monkeypatch):
    """Up to 3.11.3, which Debian 12 has."""
    name = account.submit("good")
    account.put(f"good/jobs/{name}/output/model.tar.gz", archive(model=b"x"))
    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    status, _, err = run("download", name, "--to", str(tmp_path / "run"))
    assert status == 2
    assert f"good/jobs/{name}/output/model.tar.gz cannot be unpacked safely by Python" in err
    assert "3.11.4 or later" in err
    assert not (tmp_path / "run").exists()


def test_an_object_whose_name_leads_out_is_refused(account, run, tmp_path):
    name = account.submit("climbing")
    account.put("climbing/tensorboard/../../../escaped", b"x")
    status, _, err = run("download", name, "--to", str(tmp_path / "a/b"))
    assert status == 2
    assert "escaped' is unsafe: it would be written outside of its folder" in err
    assert not list(tmp_path.rglob("escaped"))


@unpacks
def test_a_link_out_of_the_archive_is_refused(account, run, tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        tar.addfile(link)
    name = account.submit("linked")
    account.put(f"linked/jobs/{name}/output/model.tar.gz", buffer.getvalue())
    status, _, err = run("download", name, "--to", str(tmp_path / "run"))
    assert status == 2
    assert "is unsafe and was discarded" in err
    assert not (tmp_path / "run/model").exists()


# ---- cost -----------------------------------------------------------------------------------------------------------


def test_cost_of_a_job_has_seconds_saving_interruptions_dollars_and_the_price_with_its_age(account, run):
    account.service.story = story("Training", "Interrupted", "Training", "Completed", **TRAINED)[-1:]
    name = account.submit("paid", count=2)
    status, out, _ = run("cost", "paid")
    assert status == 0
    row = next(line for line in out.splitlines() if line.startswith(name))
    assert re.search(r"spot +Completed +1 h 00 min +18 min 00 s +70% +1 +0\.44$", row)
    assert re.search(
        r"ml.g4dn.xlarge in us-east-1: \$0.736 an hour as of 2026-09-24 \(up to \d+ (days|months) old; ", out
    )
    assert "Not counted: disks" in out
    _, out, _ = run("cost", name, "--usd_per_gb_month", "10")
    assert re.search(r" 1 +3\.18\n", out)  # 200 GB for one hour more
    assert "Not counted: storage" in out


@pytest.mark.parametrize("args", [[], ["base", "--tag", "run=base"]])
def test_cost_is_of_a_name_or_a_tag(run, args):
    assert run("cost", *args) == (2, "", "error: cost: give either NAME, a job or a run, or --tag KEY=VALUE.\n")


def test_cost_of_a_tag_is_that_of_all_its_jobs(account, run):
    account.service.story = story("Training", "Interrupted", "Completed", **TRAINED)[-1:]
    for _ in range(3):
        account.submit("thrice")
    _, out, _ = run("cost", "--tag", "run=thrice")
    assert re.search(r"3 jobs +3 h 00 min +54 min 00 s +70% +3 +0\.66", out)


def test_cost_of_a_job_that_still_trains_is_not_known(account, run):
    account.service.story = story("Starting", "Training")[-1:]
    _, out, _ = run("cost", account.submit())
    assert re.search(r"InProgress +- +- +- +0 +-\n", out)


def test_an_estimated_price_is_flagged_beside_the_cost(account, run):
    account.service.story = story("Training", "Completed", **TRAINED)[-1:]
    status, out, _ = run("cost", account.submit(instance_type="ml.p5.48xlarge"))
    assert status == 0
    assert re.search(r"ml\.p5\.48xlarge in us-east-1: ESTIMATED \$63\.3 an hour \(90 %: ", out)


def test_without_a_price_the_seconds_are_shown_and_the_remedy(account, run):
    account.service.story = story("Training", "Completed", **TRAINED)[-1:]
    status, out, err = run("cost", account.submit(instance_type="ml.p5e.48xlarge"))
    assert status == 2
    assert re.search(r"18 min 00 s +70% +0 +-\n", out)
    assert "ml.p5e.48xlarge in us-east-1: neither SageMaker's nor EC2's price is known in any region" in err
