"""Damaged input of every kind ends in an error that names the file, is reported, or does no harm."""

import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from corpus import SAMPLE_RATE, random_texts, spell, write_split
from fuzzing import Case, Reported, outcomes
from synthetic_study import cpu, parameters, runs
from tiny import TINY_CONFIG

from w2v_lightning.checkpoints import files, history
from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.decode import load
from w2v_lightning.data.manifest import Manifest, check_files
from w2v_lightning.data.reader import AudioReader
from w2v_lightning.model import wav2vec2
from w2v_lightning.perf_model.fitted import Fitted
from w2v_lightning.perf_model.fitting import fit
from w2v_lightning.perf_model.runs import read as read_run
from w2v_lightning.perf_model.runs import write as write_run
from w2v_lightning.prepare.command import main as prepare
from w2v_lightning.study import queue, spec
from w2v_lightning.text.vocabulary import Vocabulary

pytestmark = pytest.mark.slow

TEXTS = random_texts(4)
SUFFIXES = {"WAV": ".wav", "FLAC": ".flac", "OGG": ".ogg", "MP3": ".mp3", "AIFF": ".aiff"}
TOTAL: Counter[str] = Counter()


@pytest.fixture
def audio(tmp_path) -> list[Path]:
    paths = [tmp_path / f"{number}.flac" for number in range(len(TEXTS))]
    for path, text in zip(paths, TEXTS, strict=True):
        soundfile.write(path, spell(text), SAMPLE_RATE)
    return paths


def check(case: Case) -> None:
    """Try all copies, print the counts, and fail with the descriptions of what went wrong."""
    tried = outcomes(case)
    TOTAL.update(tried.counts)
    print(f"\n{case.path.name}: {dict(tried.counts.most_common())}; in all {sum(TOTAL.values())}: {dict(TOTAL)}")
    assert not tried.failures, "\n".join(tried.failures[:20])


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


# ---- what fit, check and transcribe read ----------------------------------------------------------------------------


def read_manifest(path: Path) -> list[str]:
    manifest = Manifest.load(path)
    check_files(manifest, path)
    load([manifest.audio(0)], AudioReader())
    return [manifest.line(i) for i in range(len(manifest))]


def test_manifests(audio, tmp_path):
    rows = [
        {"id": path.stem, "audio_filepath": path.name, "duration": soundfile.info(path).duration, "text": text}
        for path, text in zip(audio, TEXTS, strict=True)
    ]
    rows[1] |= {"offset": 0.0, "speaker": 7, "split": "train"}
    rows[2] |= {"byte_offset": 0, "num_bytes": audio[2].stat().st_size, "channel": 0}
    check(Case(write_lines(tmp_path / "m.jsonl", rows), read_manifest, 350, json_lines=True))


def cut(path: Path, text: str, number: int) -> dict:
    info = soundfile.info(path)
    recording = {
        "id": path.stem,
        "sampling_rate": info.samplerate,
        "num_samples": info.frames,
        "duration": info.duration,
    }
    recording["sources"] = [{"type": "file", "channels": [0], "source": path.name}]
    said = {"id": f"s{number}", "recording_id": path.stem, "start": 0.0, "duration": info.duration, "channel": 0}
    said |= {"text": text, "speaker": "7", "language": "en"}
    row = {"id": f"c{number}", "start": 0, "duration": info.duration, "channel": 0, "type": "MonoCut"}
    return row | {"supervisions": [said], "recording": recording}


def test_cuts_of_lhotse(audio, tmp_path):
    rows = [cut(path, text, number) for number, (path, text) in enumerate(zip(audio, TEXTS, strict=True))]
    check(Case(write_lines(tmp_path / "cuts.jsonl", rows), read_manifest, 300, json_lines=True))


@pytest.mark.parametrize("format", SUFFIXES)
def test_audio(tmp_path, format):
    path = tmp_path / f"a{SUFFIXES[format]}"
    soundfile.write(path, spell(TEXTS[0]), SAMPLE_RATE, format=format)

    def read(path: Path) -> int:
        (waveform_T,) = load([AudioRef(str(path))], AudioReader(verify=True))
        assert np.isfinite(np.asarray(waveform_T, dtype=np.float32)).all()
        return len(waveform_T)

    check(Case(path, read, 120))


def test_checkpoints(tmp_path):
    files.save({"global_step": 8, "state_dict": {}, "hyper_parameters": {"a": [1, None]}}, str(tmp_path / "a.ckpt"))
    check(Case(tmp_path / "a.ckpt", lambda path: files.load(str(path)), 150))


# ---- what prepare reads ---------------------------------------------------------------------------------------------


def prepared(path: Path) -> list[str]:
    """Return the rows that `prepare` writes, without paths."""
    out = path.parent / "out"
    shutil.rmtree(out, ignore_errors=True)
    status = prepare([str(path), "--out", str(out), "--workers", "1"])
    if status or (out / "rejected.jsonl").exists():
        raise Reported("listed in rejected.jsonl")
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    return [f"{row['id']} {row['duration']} {row['text']} {row['speaker']}" for row in rows]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_tables(audio, tmp_path, suffix):
    separator = "," if suffix == ".csv" else "\t"
    rows = [
        ("path", "sentence", "client_id"),
        *((path.name, text, "7") for path, text in zip(audio, TEXTS, strict=True)),
    ]
    path = tmp_path / f"table{suffix}"
    path.write_text("".join(separator.join(row) + "\n" for row in rows))
    check(Case(path, prepared, 150))


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_columns(audio, tmp_path, suffix):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [
        {"audio": {"bytes": path.read_bytes(), "path": path.name}, "text": text, "speaker_id": 7}
        for path, text in zip(audio, TEXTS, strict=True)
    ]
    path, table = tmp_path / f"train{suffix}", pa.Table.from_pylist(rows)
    if suffix == ".parquet":
        parquet.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    check(Case(path, prepared, 80))


def test_supervisions_of_lhotse(audio, tmp_path):
    cuts = [cut(path, text, number) for number, (path, text) in enumerate(zip(audio, TEXTS, strict=True))]
    write_lines(tmp_path / "recordings.jsonl", [row["recording"] for row in cuts])
    path = write_lines(tmp_path / "supervisions.jsonl", [row["supervisions"][0] for row in cuts])
    check(Case(path, prepared, 150, json_lines=True))


def test_archives(tmp_path):
    write_split(tmp_path, "dev", TEXTS)
    path = tmp_path / "dev.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(tmp_path / "dev", "dev")
    check(Case(path, prepared, 120))


# ---- what studies and plans read ------------------------------------------------------------------------------------


@pytest.fixture
def run():
    setup = cpu(1, hosts=2, link_mbit=100, delay_ms=2)
    return runs(parameters([setup]), [setup], noise=0.0)[0]


def test_runs(run, tmp_path):
    write_run(run, tmp_path)

    def read(path: Path) -> str:
        run = read_run(path)
        return repr((run, run.is_measured and (run.setup, run.mfu, run.gpu_utilisation, run.energy_wh_per_audio_hour)))

    check(Case(tmp_path / "run.json", read, 250, json_lines=False))


def test_histories(tmp_path):
    segment = {"started": "2026-01-31T12:00:00.000+00:00", "ended": "2026-01-31T12:10:00.000+00:00", "first_step": 0}
    segment |= {"last_step": 8, "end": "finished", "resume": "auto", "limits": {"max_steps": "8"}}
    (tmp_path / "run_history.json").write_text(json.dumps([segment, segment]))

    def read(path: Path) -> list:
        segments = history.read(str(path.parent))
        if not segments:
            raise Reported("by a warning")
        history.finished_segment(str(path.parent), {"max_steps": "8"})
        return segments

    check(Case(tmp_path / "run_history.json", read, 150, json_lines=False))


def test_fitted_models(tmp_path):
    setups = [cpu(1), cpu(2)]
    fitted = fit(runs(parameters(setups), setups))
    fitted.save(tmp_path / "fitted.json")
    small = json.loads((tmp_path / "fitted.json").read_text())
    small["samples"] = {name: sample[:3] for name, sample in small["samples"].items()}
    (tmp_path / "fitted.json").write_text(json.dumps(small))
    check(Case(tmp_path / "fitted.json", lambda path: repr(Fitted.load(path).values), 200, json_lines=False))


STUDY = {
    "config": "fit.yaml",
    "repetitions": 2,
    "cells": [
        {"hosts": 1, "devices": [1, 2], "threads": 1},
        {"options": {"data.batch_seconds": [80]}},
    ],
}


def write_study(folder: Path) -> Path:
    (folder / "fit.yaml").write_text("data: {batch_seconds: 100}\n")
    (folder / "study.yaml").write_text(json.dumps(STUDY, indent=1))
    return folder / "study.yaml"


def test_studies(tmp_path):
    check(Case(write_study(tmp_path), lambda path: repr(spec.load(path)), 150, json_lines=False))


def test_states_of_studies(tmp_path):
    study = spec.load(write_study(tmp_path))
    state = queue.load(study, tmp_path)
    state.entries[0].handle = {"began": "2026-01-31T12:00:00.000+00:00"}
    state.save()
    check(Case(tmp_path / queue.STATE, lambda path: repr(queue.load(study, path.parent)), 100, json_lines=False))


# ---- models ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path) -> Path:
    wav2vec2.save_pretrained(tmp_path / "model", wav2vec2.from_scratch(TINY_CONFIG, Vocabulary()), Vocabulary(), True)
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_tokenizers(model, name):
    check(Case(model / name, lambda path: repr(Vocabulary.load(path.parent)), 100, json_lines=False))


def test_configs(model):
    def read(path: Path) -> str:
        network, vocabulary, _ = wav2vec2.from_pretrained(str(path.parent), {})
        return repr((network.config.hidden_size, vocabulary))

    check(Case(model / "config.json", read, 100, json_lines=False))


def test_yaml_is_what_the_seed_is(tmp_path):
    assert yaml.safe_load(write_study(tmp_path).read_text()) == STUDY
