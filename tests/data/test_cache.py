import errno
import logging
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from w2v_lightning.data import cache
from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.cache import RangeCache


def ref(shard: str, offset: int = 0, num_bytes: int = 100) -> AudioRef:
    return AudioRef(f"s3://bucket/{shard}.tar", offset, num_bytes)


def body(of: AudioRef) -> bytes:
    return f"{of.url} {of.byte_offset} ".encode().ljust(of.num_bytes, b".")


def fill(ranges: RangeCache, shard: str, number: int) -> list[AudioRef]:
    refs = [ref(shard, 100 * i) for i in range(number)]
    for range_ref in refs:
        ranges.put(range_ref, body(range_ref))
    return refs


def age(ranges: RangeCache, shard: str, seconds: float) -> None:
    folder = ranges._path(ref(shard)).parent
    then_s = folder.stat().st_mtime - seconds
    os.utime(folder, (then_s, then_s))


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]


def test_what_was_put_comes_back_to_every_process_and_nothing_else_does(tmp_path):
    (kept,) = fill(RangeCache(tmp_path, 10**6), "a", 1)
    other_process = RangeCache(tmp_path, 10**6)
    assert other_process.get(kept) == body(kept)
    assert other_process.get(ref("a", 0, 99)) is None
    assert other_process.get(ref("a", 1, 100)) is None
    assert other_process.get(ref("b")) is None


@pytest.mark.parametrize("num_bytes", [100, 0])
def test_a_file_that_a_crash_cut_is_not_handed_on(tmp_path, num_bytes):
    ranges = RangeCache(tmp_path, 10**6)
    kept = ref("a", 0, num_bytes)
    ranges.put(kept, b"x" * 100)
    assert ranges.get(kept) == b"x" * 100
    ranges._path(kept).write_bytes(b"x" * (num_bytes // 2))
    assert ranges.get(kept) is None


def test_the_object_that_was_not_used_for_longest_goes_first_and_goes_whole(tmp_path):
    ranges = RangeCache(tmp_path, 1000)
    old, older = fill(ranges, "old", 4), fill(ranges, "older", 4)
    age(ranges, "old", 50)
    age(ranges, "older", 100)
    new = fill(ranges, "new", 4)
    assert [range_ref for range_ref in old + older + new if ranges.get(range_ref)] == old + new
    assert len(list(tmp_path.iterdir())) == 3  # two objects and the lock; no object is partly removed


def test_reading_is_use(tmp_path):
    ranges = RangeCache(tmp_path, 1000)
    read, unread = fill(ranges, "read", 4), fill(ranges, "unread", 4)
    age(ranges, "read", 100)
    age(ranges, "unread", 50)
    assert RangeCache(tmp_path, 1000).get(read[0])  # another process reads it
    fill(ranges, "new", 4)
    assert ranges.get(read[0])
    assert ranges.get(unread[0]) is None


def test_use_is_noted_once_a_minute(tmp_path, monkeypatch):
    ranges = RangeCache(tmp_path, 10**6)
    (kept,) = fill(ranges, "a", 1)
    noted = []
    monkeypatch.setattr(cache.os, "utime", noted.append)
    for now_s in (1000, 1030, 1059, 1061):
        monkeypatch.setattr(cache.time, "monotonic", lambda now_s=now_s: now_s)
        ranges.get(kept)
    assert len(noted) == 2


def test_sizes_are_scanned_once_per_hundredth_of_the_limit(tmp_path, monkeypatch):
    ranges = RangeCache(tmp_path, 100_000)
    scans = []
    monkeypatch.setattr(ranges, "_remove_oldest", lambda: scans.append(len(files_in(tmp_path))))
    fill(ranges, "a", 30)
    assert scans == [1, 12, 23]  # at the first write, and after range_ref further 1000 bytes


def test_a_limit_holds_over_processes_that_each_write_little(tmp_path):
    for number in range(50):
        fill(RangeCache(tmp_path, 1000), f"shard-{number}", 1)
    assert len(files_in(tmp_path)) == 10


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    (tmp_path / ".removed-abc-1").mkdir(parents=True)
    (tmp_path / ".removed-abc-1" / "0-100").write_bytes(b"x" * 100)
    fill(RangeCache(tmp_path, 1000), "a", 1)
    assert not (tmp_path / ".removed-abc-1").exists()


def test_while_one_process_evicts_the_others_go_on(tmp_path):
    from filelock import FileLock

    ranges = RangeCache(tmp_path, 150)
    with FileLock(tmp_path / ".lock"):
        started_s = time.monotonic()
        assert all(ranges.get(range_ref) for range_ref in fill(ranges, "a", 3))
        assert time.monotonic() - started_s < 2
    fill(ranges, "b", 1)
    assert ranges.get(ref("a")) is None


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_full_or_closed_disk_is_said_once_and_reading_goes_on(tmp_path, monkeypatch, caplog, code):
    ranges = RangeCache(tmp_path, 10**6)
    (kept,) = fill(ranges, "a", 1)

    def fail(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data[:10])
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "write_bytes", fail)
    with caplog.at_level(logging.WARNING, cache.__name__):
        fill(ranges, "b", 3)
    (record,) = caplog.records
    reason = os.strerror(code)
    assert record.message == f"Cannot write to the cache {tmp_path}: {reason}. Reading continues without the cache."
    assert ranges.get(kept) == body(kept)
    assert len(files_in(tmp_path)) == 1  # no temporary file is left to fill the disk


def test_an_object_that_is_removed_while_it_is_written_is_no_error(tmp_path, monkeypatch, caplog):
    ranges = RangeCache(tmp_path, 10**6)
    (kept,) = fill(ranges, "a", 1)
    replace = os.replace

    def remove_first(source: Path, target: Path) -> None:
        os.rename(target.parent, tmp_path / ".removed-a")
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(cache.os, "replace", remove_first)
        fill(ranges, "a", 1)
    assert ranges.get(kept) is None
    fill(ranges, "a", 1)
    assert ranges.get(kept) == body(kept)
    assert not caplog.records


def hammer(folder: Path, seed: int) -> None:
    ranges = RangeCache(folder, 2000)
    for number in range(600):
        range_ref = ref(f"shard-{(number * 7 + seed) % 11}", 100 * (number % 4))
        data = ranges.get(range_ref)
        assert data in (None, body(range_ref))
        if data is None:
            ranges.put(range_ref, body(range_ref))


def test_processes_that_evict_under_each_other_read_no_wrong_byte(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=hammer, args=(tmp_path, seed)) for seed in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    fill(RangeCache(tmp_path, 2000), "last", 1)
    assert len(files_in(tmp_path)) <= 20
