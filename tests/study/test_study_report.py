"""The report of a study: numbers are those of its runs, links lead to files, and what was not measured is named."""

import json
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest
from html_page import Page
from synthetic_study import cpu, parameters, runs, t4

from w2v_lightning.errors import InputError
from w2v_lightning.perf_model import runs as run_files
from w2v_lightning.perf_model.fitted import Fitted
from w2v_lightning.perf_model.runs import Run
from w2v_lightning.study.report.command import MODEL, main
from w2v_lightning.study.report.configurations import load
from w2v_lightning.study.report.money import bill
from w2v_lightning.study.report.scaling import scalings

HOSTILE = "<script>alert(1)</script> | `x` [y](javascript:alert(1)) \x1b[2J"
SAGEMAKER = [t4(1, hosts) for hosts in (1, 2, 4)] + [t4(4)]
LOCAL = [cpu(1), cpu(2), cpu(1, hosts=2, link_mbit=100, delay_ms=2)]


def on_spot(run: Run) -> Run:
    """The same run for 40 % of the price; two interruptions took a tenth of its time."""
    name, training_s = f"{run.cell['name']}-spot", 1.1 * run.training_s
    return replace(
        run,
        name=f"{name}-r{run.cell['repetition']}",
        cell=run.cell | {"name": name, "is_spot": True},
        training_s=training_s,
        billable_s=0.4 * training_s,
        interruptions=2,
    )


def failed(run: Run, outcome: str) -> Run:
    return replace(run, name="failed-r1", cell=run.cell | {"name": "failed"}, throughput={}, wer=[], outcome=outcome)


def written(folder: Path, found: list[Run]) -> Path:
    for run in found:
        run_files.write(run, folder / run.name)
    return folder


def report(folder: Path, *options: str) -> str:
    assert main([str(folder), *options]) == 0
    return (folder / "report.html").read_text(encoding="utf-8")


def row(page: str, first: str) -> list[str]:
    """Cells of the first row that begins with `first`, as text."""
    rows = [re.findall("<td.*?>(.*?)</td>", row, re.DOTALL) for row in re.findall("<tr>(.*?)</tr>", page, re.DOTALL)]
    texts = [[re.sub("<.*?>", "", cell).strip() for cell in row] for row in rows]
    return next(row for row in texts if row and row[0].startswith(first))


@pytest.fixture(scope="module")
def on_demand() -> list[Run]:
    return runs(parameters(SAGEMAKER), SAGEMAKER, seed=1, repetitions=2)


@pytest.fixture(scope="module")
def sagemaker(tmp_path_factory, on_demand: list[Run]) -> Path:
    """A study of g4dn with its report."""
    found = [*on_demand, *map(on_spot, on_demand), failed(on_demand[0], HOSTILE)]
    folder = written(tmp_path_factory.mktemp("g4dn"), found)
    report(folder, "--html", str(folder / "report.html"), "--markdown", str(folder / "docs" / "report.md"))
    return folder


@pytest.fixture(scope="module")
def page(sagemaker: Path) -> str:
    return (sagemaker / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def markdown(sagemaker: Path) -> str:
    return (sagemaker / "docs" / "report.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> str:
    """The page of processes on CPUs, without prices."""
    return report(written(tmp_path_factory.mktemp("local"), runs(parameters(LOCAL), LOCAL, seed=1)))


def test_the_page_needs_nothing_else(page: str) -> None:
    found = Page(page)
    assert "script" not in found.tags
    links = [value for name, value in found.attributes if name in ("href", "src")]
    assert links
    assert not [link for link in links if ":" in link]
    assert not re.search(r"https?:|@import|url\((?!#)", page)


def test_every_id_is_defined_once(page: str) -> None:
    ids = [value for name, value in Page(page).attributes if name == "id"]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"url\(#([^)]*)\)", page)) | set(re.findall(r'href="#([^"]*)"', page))
    assert used
    assert used <= set(ids)


def test_every_run_is_linked_and_every_link_leads_to_a_run(sagemaker: Path, page: str, markdown: str) -> None:
    files = set(sagemaker.rglob(run_files.FILE))
    in_page = {link for name, link in Page(page).attributes if name == "href" and not link.startswith("#")}
    assert {(sagemaker / unquote(link)).resolve() for link in in_page} == files
    in_markdown = {link for link in re.findall(r"(?<!\\)\]\((.*?)\)", markdown) if not link.endswith(".svg")}
    assert {(sagemaker / "docs" / unquote(link)).resolve() for link in in_markdown} == files


def test_what_comes_from_files_is_no_markup(page: str, markdown: str) -> None:
    assert "<script" not in page
    assert "\x1b" not in page + markdown
    assert "<script>alert(1)</script> | `x`" in Page(page).text
    line = next(line for line in markdown.splitlines() if "alert" in line)
    assert r"\<script\>alert(1)\</script\> \| \`x\` \[y\](javascript" in line


def test_a_run_is_in_the_table_with_its_own_numbers(sagemaker: Path, page: str) -> None:
    study = load(sagemaker, sagemaker / "report.html")
    one = next(c for c in study.configurations if c.world_size == 2)
    cells = row(page.replace(",", ""), one.name)
    first, second = (run.audio_s_per_s for run in one.runs)
    assert cells[2] == "2"
    assert float(cells[3].split(" ± ")[0]) == pytest.approx((first + second) / 2, rel=0.01)
    assert float(cells[3].split(" ± ")[1]) == pytest.approx(abs(first - second) / 2, rel=0.2)
    windows = one.runs[0].steady_windows
    samples = sum(w["utterances"] for w in windows) / sum(w["seconds"] for w in windows)
    assert float(cells[4]) == pytest.approx(samples, rel=0.05)
    minutes = one.runs[0].throughput["workload"]["audio_s_per_epoch"] / (first + second) * 2 / 60
    assert float(cells[6].removesuffix(" min")) == pytest.approx(minutes, rel=0.01)


def test_scaling_is_of_the_smallest_and_knows_its_error(sagemaker: Path) -> None:
    study = load(sagemaker, sagemaker / "report.html")
    found = {one.label: one for one in scalings(study.physical)}
    assert set(found) == {"ml.g4dn.2xlarge"}  # of the other type there is one number only
    series = found["ml.g4dn.2xlarge"]
    first, _, last = series.configurations
    efficiency = series.efficiency(last)
    assert efficiency.mean == pytest.approx(last.audio_s_per_s.mean / first.audio_s_per_s.mean / 4)
    errors = [one.audio_s_per_s.half / one.audio_s_per_s.mean for one in (first, last)]
    assert efficiency.half == pytest.approx(efficiency.mean * (errors[0] ** 2 + errors[1] ** 2) ** 0.5)
    assert series.efficiency(first).mean == 1


def test_on_demand_and_spot_are_one_where_it_is_not_about_money(sagemaker: Path) -> None:
    study = load(sagemaker, sagemaker / "report.html")
    assert len(study.configurations) == 2 * len(study.physical) == 2 * len(SAGEMAKER)
    fitted = Fitted.load(sagemaker / MODEL)
    assert set(fitted.leave_one_out) == {one.name for one in study.physical}
    assert not any("spot" in name for name in fitted.leave_one_out)


def test_a_bill_is_what_was_billed(sagemaker: Path, on_demand: list[Run]) -> None:
    study = load(sagemaker, sagemaker / "report.html")
    spot = next(c for c in study.configurations if c.cell["is_spot"] and c.cell["count"] == 4)
    trained_s = [run.training_s for run in on_demand if run.cell["name"] == spot.name.removesuffix("-spot")]
    found = bill(spot)
    assert found.usd_per_run == pytest.approx(sum(trained_s) / 2 * 1.1 * 0.4 / 3600 * 4 * 0.94)
    assert found.saving == pytest.approx(0.6)
    assert found.usd_per_epoch == pytest.approx(spot.epoch_s / 3600 * 4 * 0.94 * 0.4)


def test_prices_are_shown_with_their_age(page: str) -> None:
    text = Page(page).text
    assert "ml.g4dn.2xlarge in us-east-1: $0.94 an hour as of 2026-09" in text
    assert re.search(r"as of 2026-09 \(up to \d+ (months|days) old; made up\)", text)


def test_all_five_claims_have_a_line(page: str) -> None:
    lines = [row(page, f"{i}. ") for i in range(1, 6)]
    assert ["30.8 to 61.3" in line[0] for line in lines] == [False, False, True, False, False]
    measured = [line[1] for line in lines]
    assert not any("Not measured" in text for text in measured)
    assert "60 %" not in measured[2]
    assert "56 % to 56 % less per run" in measured[3]  # 1.1 times the time at 40 % of the price
    assert "2 interruptions" in measured[3]
    assert all(line[3] for line in lines)
    assert "$22.74 on demand" in lines[3][3]


def test_predictions_say_so_and_what_they_rest_on(page: str) -> None:
    text = Page(page).text
    assert "Predicted, not measured: 10 epochs of 100 h in us-east-1" in text
    assert len(row(page, "16 x ml.g4dn.2xlarge")) == 9
    assert "30 min of waiting for spot instances: assumed" in text


def test_what_did_not_finish_is_named_with_its_reason(page: str) -> None:
    cells = row(page, "failed-r1")
    assert "alert(1)" in cells[1]
    assert cells[2] == "no"


def test_without_a_model_there_is_a_report_and_the_reason(tmp_path: Path, on_demand: list[Run], monkeypatch) -> None:
    def without_scipy(*args, **kwargs):
        raise InputError("Fitting needs scipy.")

    monkeypatch.setattr("w2v_lightning.perf_model.fitting.fit", without_scipy)
    monkeypatch.setattr("w2v_lightning.perf_model.laws._fitted", without_scipy)
    text = Page(report(written(tmp_path, on_demand))).text
    assert "There is no model: Fitting needs scipy." in text
    assert "They cannot be predicted from these runs: Fitting needs scipy." in text
    assert "The knee is at" in text  # that is measured
    assert not (tmp_path / MODEL).exists()


def test_what_its_steps_were_is_needed_for_predictions_only(tmp_path: Path, on_demand: list[Run]) -> None:
    found = json.loads(json.dumps([run.throughput for run in on_demand]))
    for throughput in found:
        throughput["workload"]["batch_seconds"] = None
    runs_without = [replace(run, throughput=its) for run, its in zip(on_demand, found, strict=True)]
    assert "They cannot be predicted from these runs" in report(written(tmp_path, runs_without))


def test_what_still_runs_is_named(tmp_path: Path) -> None:
    found = runs(parameters([cpu(1)]), [cpu(1)])
    folder = written(tmp_path, found)
    cells = {name: {"cell": {}, "handle": {}} for name in ("local-x8-r1", found[0].name)}
    (folder / "state.json").write_text(json.dumps({"format": 1, "config": "", "cells": cells}))
    assert "Still running when this report was made: local-x8-r1." in Page(report(folder)).text


def test_markdown_has_its_charts_beside_it(sagemaker: Path, markdown: str) -> None:
    charts = re.findall(r"!\[.*?\]\((.*?)\)", markdown)
    assert len(charts) == len(set(charts)) >= 8
    for chart in charts:
        assert (sagemaker / "docs" / chart).read_text(encoding="utf-8").startswith("<svg")
    tables = [line for line in markdown.splitlines() if line.startswith("|")]
    assert tables
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in tables if "audio-s/s" in line or "2xlarge-2x1" in line}
    assert min(widths) > 3


@pytest.mark.parametrize("missing", ["price", "billable_s"])
def test_no_bill_without_price_and_billed_seconds(tmp_path: Path, on_demand: list[Run], missing: str) -> None:
    folder = written(tmp_path, [replace(run, **{missing: None}) for run in on_demand])
    assert not any(map(bill, load(folder, folder).configurations))


def test_without_prices_nothing_has_a_cost(local: str) -> None:
    text = Page(local).text
    assert "No run has both a price and billed seconds, so costs are unknown." in text
    assert "WER over time" in text
    assert "USD per run" not in text
    assert "Not measured: GPU utilisation. These runs used CPUs." in text


def test_a_study_of_cpus_predicts_theirs_for_base_from_the_gpu_that_was_measured_by_itself(local: str) -> None:
    text = Page(local).text
    assert "with wav2vec2-base, because this study's model is too small" in text
    assert "; measured once, " in text
    assert "Not measured: no run of this study was on either of them." in text
    assert "this study has no cluster with a bill both on demand and on spot" in text


def test_each_network_is_a_series_and_one_host_its_beginning(tmp_path: Path) -> None:
    folder = written(tmp_path, runs(parameters(LOCAL), LOCAL, seed=1))
    found = {one.label: one for one in scalings(load(folder, folder).physical)}
    assert set(found) == {"one host", "100 Mbit/s, 2 ms"}
    assert {one.base.name for one in found.values()} == {"local-1x1-60s-workers-1"}


def test_one_point_says_what_cannot_be_said(tmp_path: Path) -> None:
    text = Page(report(written(tmp_path, runs(parameters([cpu(1)]), [cpu(1)], seed=1)))).text
    assert "how throughput scales was not measured" in text
    assert "A single process does not exchange gradients." in text
    assert "the accuracy of predictions was not tested" in text
    assert "Scaling efficiency" not in text


def test_without_validation_there_is_no_error_rate(tmp_path: Path) -> None:
    found = [replace(run, wer=[]) for run in runs(parameters([cpu(1)]), [cpu(1)], seed=1)]
    page = report(written(tmp_path, found))
    assert "no run of this study was validated" in page
    assert row(page, found[0].cell["name"])[-1] == "not measured"


def test_no_run_that_trained_is_a_report_of_its_reasons(tmp_path: Path) -> None:
    (run,) = runs(parameters([cpu(1)]), [cpu(1)])
    short = replace(run, name="short-r1", throughput=run.throughput | {"windows": run.throughput["windows"][:1]})
    page = report(written(tmp_path, [failed(run, "no capacity"), short]))
    assert "No run trained for long enough" in page
    assert row(page, "failed-r1")[1] == "no capacity"
    assert "too few steps" in row(page, "short-r1")[1]
    assert not (tmp_path / MODEL).exists()


def test_a_half_written_run_is_named(tmp_path: Path) -> None:
    folder = written(tmp_path, runs(parameters(LOCAL), LOCAL))
    path = sorted(folder.rglob(run_files.FILE))[0]
    path.write_text(path.read_text(encoding="utf-8")[:1000], encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(str(path))):
        main([str(folder)])
    assert not (folder / "report.html").exists()


def test_a_folder_without_runs_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(f"{tmp_path / 'nothing'} has no run.json")):
        main([str(tmp_path / "nothing")])


def test_names_of_folders_are_quoted_in_links(tmp_path: Path) -> None:
    (run,) = runs(parameters([cpu(1)]), [cpu(1)])
    folder = written(tmp_path / 'a "study" #1', [replace(run, name="javascript:alert(1) %41")])
    page = report(folder)
    links = {link for name, link in Page(page).attributes if name == "href" and not link.startswith("#")}
    assert [json.loads((folder / unquote(link)).read_text())["name"] for link in links] == ["javascript:alert(1) %41"]
    assert not any(link.startswith("javascript:") for link in links)


def test_the_knee_is_explained_by_the_part_that_grows(page: str, on_demand: list[Run]) -> None:
    text = Page(page).text
    sentence = re.search(
        r"ml\.g4dn\.2xlarge: The knee is at (\d+) devices?, measured\. ([^.]*)\. The part that grows most is (\w+)",
        text,
    )
    assert sentence[3] == "communication"
    speed = {run.setup.world_size: run.audio_s_per_s for run in on_demand if run.cell["hardware"] == "ml.g4dn.2xlarge"}
    devices = int(sentence[1])
    assert (speed[2 * devices] - speed[devices]) / devices < 0.5 * speed[1]
    assert {law for law in ("Amdahl", "USL") if f">{law}\n</td>" in page or f">{law}</td>" in page} == {"Amdahl", "USL"}


def test_beyond_what_was_measured_it_is_predicted(page: str) -> None:
    assert "8 devices, predicted" in page  # twice the largest of each kind
    assert "<title>8 devices, predicted</title>" in page
    assert "hollow: predicted" in page


def test_processes_are_not_predicted_beyond_their_cores(local: str) -> None:
    assert "devices, predicted" not in local


def test_a_series_that_scales_has_its_knee_predicted(tmp_path: Path) -> None:
    setups = [t4(1), t4(1, hosts=2, link_bytes_per_s=1.25e10)]
    text = Page(report(written(tmp_path, runs(parameters(setups), setups, noise=0.001, seed=1)))).text
    said = re.search(
        r"Up to 2 devices each further device adds at least half of what the first brought\. (.*?)\.", text
    )[1]
    assert "predicted" in said.lower()


def test_launching_is_told_from_computing_by_the_model(tmp_path: Path) -> None:
    """A run alone sees a device with a micro-batch in hand in either case."""
    one = t4(1, computed_s=400.0, audio_s=400.0, micro_batches=1)
    four = replace(one, hosts=4, link="ml.g4dn.2xlarge", link_bytes_per_s=1.25e10)
    setups = [replace(one, computed_s=1600.0, audio_s=1600.0, storage="disk"), one, four]
    found = runs(parameters(setups, launch_s=0.5), setups, noise=0.01, repetitions=2)
    page = report(written(tmp_path, found))
    bottlenecks = {run.name: row(page, run.cell["name"])[8] for run in found}
    is_launching = {name: "launching" in said for name, said in bottlenecks.items()}
    launching = {run.name: run.setup.audio_s == 400 and run.setup.world_size == 4 for run in found}
    assert is_launching == launching
    text = Page(page).text
    assert "The knee is at 1 device, measured." in text
    assert "According to the model it is kernel launching." in text
    assert "Longer steps (data.batch_seconds) move the knee" in text


def test_gpu_use_of_older_versions_has_a_note(tmp_path: Path) -> None:
    old, new = runs(parameters([t4(1)]), [t4(1)], noise=0.01, repetitions=2)
    windows = [w | {"gpu_utilisation": 0.4321, "gpu_num_utilisation": 1} for w in new.throughput["windows"]]
    new = replace(new, throughput=new.throughput | {"windows": windows})
    note = "GPU utilisation and energy of all configurations cover the whole run"
    page = report(written(tmp_path / "old", [old]))
    assert note in Page(page).text
    assert "43.2 %" not in Page(page).text
    for name, its in {"new": [new], "both": [old, new]}.items():  # of both, the new one alone counts
        page = report(written(tmp_path / name, its))
        assert note not in Page(page).text
        assert "43.2 %" in Page(page).text


def test_studies_of_one_folder_are_kept_apart(tmp_path: Path) -> None:
    setups = [cpu(1), cpu(2)]
    for name, flops in (("small", 4e8), ("large", 8e8)):
        its = [replace(setup, flops_per_audio_s=flops) for setup in setups]
        written(tmp_path / name, runs(parameters(its), its, seed=1))
    study = load(tmp_path, tmp_path / "report.html")
    assert {one.name.split("/")[0] for one in study.configurations} == {"small", "large"}
    assert len(study.physical) == 4
    found = scalings(study.physical)
    assert {one.label.split(":")[0] for one in found} == {"small", "large"}
    assert all(len({c.setup.flops_per_audio_s for c in one.configurations}) == 1 for one in found)
    report(tmp_path)
    assert len(Fitted.load(tmp_path / MODEL).configurations) == 4
