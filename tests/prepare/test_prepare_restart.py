import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from corpus import random_texts, write_split
from filelock import FileLock

from w2v_lightning.errors import InputError
from w2v_lightning.prepare import command, convert, parts
from w2v_lightning.prepare.command import main
from w2v_lightning.prepare.shards import Shard

OPTIONS = ("--shard-size", "40KB", "--max-duration", "3")


class Interruption(BaseException):
    """Exception that nothing may catch."""


@pytest.fixture
def corpus(tmp_path) -> Path:
    """Corpus of three splits, four shards or more, an id that occurs twice, and an utterance without audio."""
    root = tmp_path / "corpus"
    write_split(root, "dev-clean", random_texts(7, seed=4), "84")
    chapter = write_split(root, "train-clean-100", random_texts(12, seed=5), "19")
    write_split(root, "zz", ["A B"], "19")
    with (chapter / "19-1.trans.txt").open("a") as file:
        file.write("19-1-0099 NOTHING\n")
    return root


def content(out: Path) -> dict[str, bytes]:
    """Return every file of a finished run except the lock."""
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != ".lock"}


def at_call(number: int, function, then):
    """Wrap `function` so that its call of that number calls `then()` instead."""
    calls = iter(range(1, 10**9))
    return lambda *args, **kwargs: then() if next(calls) == number else function(*args, **kwargs)


def interrupt() -> None:
    raise Interruption


def test_interruption_at_any_rename_changes_nothing_in_the_end(corpus, prepare, monkeypatch):
    expected = content(prepare(corpus, *OPTIONS, out="whole"))
    assert len([name for name in expected if name.endswith(".tar")]) >= 4
    number = 0
    while True:
        number += 1
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", at_call(number, os.replace, interrupt))
            try:
                prepare(corpus, *OPTIONS, out=f"broken{number}")
                break  # the run has fewer renames than `number`
            except Interruption:
                pass
        assert content(prepare(corpus, *OPTIONS, out=f"broken{number}")) == expected
    assert number > 10


@pytest.mark.parametrize("number", [1, 2, 14, 25])
def test_interruption_in_the_middle_of_a_shard_changes_nothing_in_the_end(corpus, prepare, monkeypatch, number):
    expected = content(prepare(corpus, *OPTIONS, out="whole"))
    with monkeypatch.context() as patch:
        patch.setattr(Shard, "add", at_call(number, Shard.add, interrupt))
        with pytest.raises(Interruption):
            prepare(corpus, *OPTIONS)
    assert content(prepare(corpus, *OPTIONS)) == expected


@pytest.mark.parametrize(("function", "number"), [("os.replace", 4), ("Shard.add", 20)])
def test_killed_run_goes_on_where_it_was(corpus, prepare, tmp_path, function, number):
    expected = content(prepare(corpus, *OPTIONS, out="whole"))
    code = f"""
import os, signal, sys
from w2v_lightning.prepare.command import main
from w2v_lightning.prepare.shards import Shard
original, calls = {function}, iter(range(1, 1000))
def killed(*args, **kwargs):
    if next(calls) == {number}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)
{function} = killed
main(sys.argv[1:])
"""
    out = tmp_path / "out"
    run = subprocess.run([sys.executable, "-c", code, str(corpus), "--out", str(out), *OPTIONS], timeout=60)
    assert run.returncode == -9
    kept = {path: path.stat().st_ino for path in (out / ".parts").glob("*.part")}
    shards = {path: path.stat().st_ino for path in (out / "shards" / f"{part.stem}.tar" for part in kept)}
    assert kept
    assert not (out / "manifest.jsonl").exists()
    assert content(prepare(corpus, *OPTIONS)) == expected
    assert shards == {path: path.stat().st_ino for path in shards}


def test_what_is_done_is_not_looked_at_again(corpus, prepare, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", at_call(6, os.replace, interrupt))
        with pytest.raises(Interruption):
            prepare(corpus, *OPTIONS)
    done = prepare_done_ids(corpus.parent / "out")
    looked_at = []
    original = convert.prepare_audio
    monkeypatch.setattr(
        "w2v_lightning.prepare.pipeline.prepare_audio",
        lambda ref, *options: looked_at.append(Path(ref.url)) or original(ref, *options),
    )
    prepare(corpus, *OPTIONS)
    assert done
    assert looked_at
    assert not done.intersection(path.stem for path in looked_at if "zz" not in path.parts)  # its id occurs twice


def prepare_done_ids(out: Path) -> set[str]:
    paths = [path for path, _ in parts.read_headers(out / ".parts")]
    return {json.loads(line)["id"] for path in paths for line in parts.lines_of(path)}


def test_interrupted_run_without_shards_goes_on_too(corpus, prepare, monkeypatch):
    monkeypatch.setattr(parts, "MAX_LINES", 3)
    expected = content(prepare(corpus, out="whole"))
    for number in range(1, 6):
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", at_call(number, os.replace, interrupt))
            with pytest.raises(Interruption):
                prepare(corpus)
    assert content(prepare(corpus)) == expected


def test_a_second_run_does_nothing(corpus, prepare, monkeypatch, capsys):
    out = prepare(corpus, *OPTIONS)
    files = [path for path in out.rglob("*") if path.name != ".lock"]  # taking the lock may touch its file
    before = [(path.stat().st_mtime_ns, path.stat().st_ino) for path in files]
    capsys.readouterr()
    monkeypatch.setattr(command, "_make", lambda *args: pytest.fail("made again"))
    prepare(corpus, *OPTIONS)
    assert [(path.stat().st_mtime_ns, path.stat().st_ino) for path in files] == before
    assert capsys.readouterr().out == f"{out} is complete; nothing to do.\n"


@pytest.mark.parametrize("is_finished", [True, False], ids=["finished", "interrupted"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--shard-size", "70KB", "--max-duration", "3"), "--shard_size was 40000, is now 70000"),
        ((*OPTIONS, "--resample", "16000"), "--resample was None, is now 16000"),
    ],
)
def test_other_options_are_refused(corpus, prepare, monkeypatch, options, message, is_finished):
    if not is_finished:
        monkeypatch.setattr(command, "_fill", lambda *args: interrupt())
    try:
        prepare(corpus, *OPTIONS)
    except Interruption:
        monkeypatch.undo()
    with pytest.raises(InputError, match=f"{message}. Choose another --out, or delete this folder"):
        prepare(corpus, *options)


def test_changed_source_is_refused(corpus, prepare):
    out = prepare(corpus, *OPTIONS)
    before = content(out)
    changed = corpus / "train-clean-100" / "19" / "1" / "19-1-0003.flac"
    os.utime(changed, ns=(0, changed.stat().st_mtime_ns + 1))  # like an edit that keeps the size
    with pytest.raises(InputError, match=f"source {corpus} has changed. Choose another --out"):
        prepare(corpus, *OPTIONS)
    with pytest.raises(InputError, match=f"source {corpus} was removed; source {corpus}/zz was added"):
        prepare(corpus / "zz", *OPTIONS)
    assert content(out) == before


@pytest.mark.parametrize("name", ["manifest.jsonl", "stats.json"])
def test_folder_with_files_of_another_program_is_refused(corpus, prepare, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("{}")
    with pytest.raises(InputError, match="not written by prepare"):
        prepare(corpus)
    assert (tmp_path / "out" / name).read_text() == "{}"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"options": []}, "stats.json has an invalid value: options must be a JSON object, found"),
        ({"sources": [1]}, r"stats.json has an invalid value: sources\[0\] must be a JSON object, found 1"),
        (None, "stats.json cannot be read"),
    ],
)
def test_a_record_with_another_value_is_named(corpus, prepare, change, expected):
    stats = prepare(corpus) / "stats.json"
    stats.write_text(json.dumps(json.loads(stats.read_text()) | change) if change else "{")
    with pytest.raises(InputError, match=expected):
        prepare(corpus)


def command_line(corpus: Path, out: Path) -> list[str]:
    command = [sys.executable, "-u", "-m", "w2v_lightning", "prepare", str(corpus), "--out", str(out)]
    return [*command, *OPTIONS, "--max_rejected", "100"]


def test_two_at_once_make_one_corpus(corpus, prepare, tmp_path):
    expected = content(prepare(corpus, *OPTIONS, out="whole"))
    runs = [subprocess.Popen(command_line(corpus, tmp_path / "out"), stdout=subprocess.PIPE, text=True) for _ in "ab"]
    said = [run.communicate(timeout=60)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert sum("nothing to do" in text for text in said) == 1
    assert content(tmp_path / "out") == expected


def test_a_run_waits_for_another_and_says_so(corpus, tmp_path):
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"):
        run = subprocess.Popen(command_line(corpus, tmp_path / "out"), stdout=subprocess.PIPE, text=True)
        assert re.match(r"Another prepare is running in .*/out; waiting until it ends\.", run.stdout.readline())
        assert not (tmp_path / "out" / ".parts").exists()
    assert "20 utterances" in run.communicate(timeout=60)[0]
    assert run.returncode == 0
    assert (tmp_path / "out" / "stats.json").exists()


def test_full_disk_is_an_error_and_the_run_goes_on_after_it(corpus, prepare, monkeypatch):
    def full(*args) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Shard, "add", at_call(20, Shard.add, full))
        with pytest.raises(InputError, match=r"No space left on device\. Fix this and run the same command again"):
            prepare(corpus, *OPTIONS)
    assert content(prepare(corpus, *OPTIONS)) == content(prepare(corpus, *OPTIONS, out="whole"))


def test_starting_does_not_import_torch(corpus, tmp_path):
    code = f"import sys; from {main.__module__} import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(corpus), "--out", str(tmp_path / "o"), *OPTIONS], check=True)
