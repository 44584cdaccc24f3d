"""Splits of sources: from names of files and folders, and from columns; and what must not become one."""

import json
from pathlib import Path

import pytest
from layouts import write_sound, write_text

from w2v_lightning.prepare.splits import among_several


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["train.tsv", "dev.tsv", "test.tsv"], ["train", "dev", "test"]),
        (["a/train-00000-of-00002.parquet", "a/test-00000-of-00001.parquet"], ["train", "test"]),
        (["pl_train.csv.gz", "pl_valid.csv.gz"], ["pl_train", "pl_valid"]),
        (["my/train/metadata.csv", "my/test/metadata.csv"], ["train", "test"]),
        (["train.tar", "val.tar.gz", "more"], ["train", "val", "more"]),
        (["pl.tsv", "de.tsv"], ["", ""]),
        (["constrained.tsv", "latest.tsv"], ["", ""]),
        (["test_data/pl.tsv", "test_data/de.tsv"], ["", ""]),
        (["train.tsv"], [""]),
    ],
)
def test_names_of_several_sources(paths, names):
    assert among_several([Path("/corpora") / path for path in paths]) == names


def splits_of(out: Path, rows) -> dict[str, str | None]:
    return {row["text"]: row.get("split") for row in rows(out / "manifest.jsonl")}


def write_pair(folder: Path, text: str) -> Path:
    write_sound(folder / f"{text}.wav")
    write_text(folder / f"{text}.txt", text)
    return folder


def test_folders_of_several_splits_are_splits(tmp_path, prepare, rows):
    folders = [write_pair(tmp_path / "mine" / name, name) for name in ("train", "test")]
    expected = {"train": "train", "test": "test"}
    assert splits_of(prepare(*folders, out="a"), rows) == expected
    assert splits_of(prepare(tmp_path / "mine", out="b"), rows) == expected


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl", "parquet"])
def test_a_split_column_makes_splits(tmp_path, prepare, rows, suffix):
    table = [{"path": f"{name}.wav", "text": name, "split": name} for name in ("train", "test", "manifest")]
    for row in table:
        write_sound(tmp_path / row["path"])
    path = tmp_path / f"list.{suffix}"
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(table), path)
    elif suffix == "csv":
        write_text(path, "path,text,split\n" + "".join(f"{','.join(row.values())}\n" for row in table))
    else:
        write_text(path, json.dumps(table) if suffix == "json" else "".join(f"{json.dumps(row)}\n" for row in table))
    out = prepare(path)
    # manifest.jsonl holds all splits, so no split can have its name
    assert splits_of(out, rows) == {"train": "train", "test": "test", "manifest": "manifest-split"}
    assert [row["text"] for row in rows(out / "test.jsonl")] == ["test"]


@pytest.mark.parametrize("names", [("train.parquet", "test.parquet"), ("en/train/0.parquet", "en/test/0.parquet")])
def test_parquet_files_are_splits_by_name_or_folder(tmp_path, prepare, rows, names):
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    from pyarrow import parquet

    audio = write_sound(tmp_path / "a.wav").read_bytes()
    for i, name in enumerate(names):
        (tmp_path / "hub" / name).parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.table({"id": [i], "audio": [audio], "text": [str(i)]}), tmp_path / "hub" / name)
    assert splits_of(prepare(tmp_path / "hub"), rows) == {"0": "train", "1": "test"}


def test_the_summary_counts_each_split(tmp_path, prepare, capsys):
    prepare(*(write_pair(tmp_path / name, name) for name in ("train", "test")))
    assert "Utterances per split: test 1, train 1.\n" in capsys.readouterr().out
