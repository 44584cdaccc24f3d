"""Parquet and Arrow files are read in a child process: a file that ends it is named, and this process lives on."""

import pyarrow as pa
import pytest
from pyarrow import parquet

from w2v_lightning.errors import InputError
from w2v_lightning.prepare import arrow_files
from w2v_lightning.prepare.arrow_files import ArrowFiles

ROWS = [{"text": f"LINE {n}", "audio": {"bytes": bytes([n]) * 999, "path": f"{n}.wav"}, "id": n} for n in range(40)]


@pytest.fixture(params=["a.parquet", "a.arrow"])
def path(request, tmp_path):
    table = pa.Table.from_pylist(ROWS)
    path = tmp_path / request.param
    if path.suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=30)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, 30)
    return path


def read(files, path, columns):
    files.schema(path)
    return [row for batch in files.batches(path, columns) for row in batch.to_pylist()]


def test_columns_come_in_the_order_asked_for_from_one_child_for_all_files(path):
    with ArrowFiles() as files:
        assert files.schema(path).names == ["text", "audio", "id"]
        for _ in range(3):
            rows = read(files, path, ["audio", "text"])
            assert rows == [{"audio": row["audio"], "text": row["text"]} for row in ROWS]
            assert list(rows[0]) == ["audio", "text"]


def test_text_with_a_dictionary_is_read(tmp_path):
    text = pa.array(["YES", "NO", "YES"]).dictionary_encode()
    parquet.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    with ArrowFiles() as files:
        assert [row["text"] for row in read(files, tmp_path / "a.parquet", ["text"])] == ["YES", "NO", "YES"]


def test_a_damaged_file_is_named_and_the_next_one_read(path, tmp_path):
    whole = path.read_bytes()
    with ArrowFiles() as files:
        for content in (b"", whole[:-100], bytes(len(whole))):
            damaged = tmp_path / f"damaged{path.suffix}"
            damaged.write_bytes(content)
            with pytest.raises(
                InputError, match=rf"damaged{path.suffix}: damaged, .*\. Download or export it again\.$"
            ):
                read(files, damaged, ["text"])
            assert len(read(files, path, ["text"])) == len(ROWS)
        with pytest.raises(InputError, match="none"):
            files.schema(tmp_path / "none.parquet")


def test_offsets_beyond_the_data_are_found_before_they_reach_this_process(tmp_path):
    """pyarrow believes the offsets of a string column; to_pylist then reads wherever they point."""
    path = tmp_path / "a.arrow"
    table = pa.table({"text": ["LINE"] * 8})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    offsets = b"".join((4 * n).to_bytes(4, "little") for n in range(9))
    content = path.read_bytes()
    assert content.count(offsets) == 1
    path.write_bytes(content.replace(offsets, offsets[:-4] + (2**30).to_bytes(4, "little")))
    with ArrowFiles() as files, pytest.raises(InputError, match=r"a\.arrow: damaged, "):
        read(files, path, ["text"])


def test_a_crash_of_the_child_names_the_file(path, tmp_path, monkeypatch):
    worker = tmp_path / "worker.py"
    worker.write_text("import os, signal, sys\nos.read(int(sys.argv[1]), 4)\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setattr(arrow_files, "WORKER", worker)
    with (
        ArrowFiles() as files,
        pytest.raises(InputError, match=rf"{path.name}: damaged: pyarrow crashes on it \(SIGSEGV\)"),
    ):
        files.schema(path)


def test_no_child_is_left(path):
    with ArrowFiles() as files:
        files.schema(path)
        next(files.batches(path, ["text"]))  # left in the middle
    assert files._child.returncode is not None
