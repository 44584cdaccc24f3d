"""Checkpoint files: complete or absent, whatever happens during or after writing."""

import errno
import hashlib
import os
import resource
import signal
import sys
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from w2v_lightning.checkpoints import files
from w2v_lightning.errors import InputError

pytest_plugins = ["s3"]


def checkpoint(step=7):
    return {
        "state_dict": OrderedDict(weight=torch.arange(4.0) * step),
        "global_step": step,
        "callbacks": {"x": [1, (2.5, None)]},
    }


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "step-00000007.ckpt"
    files.save(checkpoint(), str(path))
    return path


def whole(path, step):
    """Check that `path` is exactly the checkpoint of that step."""
    return files.find_damage(str(path)) is None and torch.equal(
        files.load(str(path))["state_dict"]["weight"], torch.arange(4.0) * step
    )


def test_it_is_a_plain_torch_checkpoint_that_names_its_checksum(saved):
    for options in ({}, {"mmap": True}):
        loaded = torch.load(saved, weights_only=True, **options)
        assert torch.equal(loaded["state_dict"]["weight"], checkpoint()["state_dict"]["weight"])
        assert loaded["callbacks"] == checkpoint()["callbacks"]
    comment = zipfile.ZipFile(saved).comment.decode()
    assert comment.endswith(hashlib.sha256(saved.read_bytes()[:-64]).hexdigest())
    assert files.global_step(str(saved)) == 7
    assert files.find_damage(str(saved)) is None
    assert os.listdir(saved.parent) == [saved.name]


def test_every_flipped_bit_is_found(saved):
    data = saved.read_bytes()
    for position in range(len(data)):
        broken = bytearray(data)
        broken[position] ^= 1 << position % 8
        saved.write_bytes(broken)
        assert files.find_damage(str(saved)), position


def test_every_truncation_is_found(saved):
    data = saved.read_bytes()
    for length in range(len(data)):
        saved.write_bytes(data[:length])
        problem = files.find_damage(str(saved))
        assert problem == "it is empty" if length == 0 else "truncated" in problem, length


def test_what_is_missing_or_unreadable_is_said(tmp_path):
    assert files.find_damage(str(tmp_path / "none.ckpt")) == "it is missing"
    (tmp_path / "folder.ckpt").mkdir()
    assert "cannot be read" in files.find_damage(str(tmp_path / "folder.ckpt"))
    assert files.global_step(str(tmp_path / "none.ckpt")) is None


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", "changed"])
def test_loading_what_is_damaged_names_the_file(saved, content):
    saved.write_bytes(
        saved.read_bytes().replace(b"global_step", b"globul_step", 1) if content == "changed" else content
    )
    with pytest.raises(InputError, match="step-00000007"):
        files.load(str(saved))


def test_a_checkpoint_of_another_program_loads(tmp_path):
    torch.save(checkpoint(), tmp_path / "lightning.ckpt")
    assert files.load(str(tmp_path / "lightning.ckpt"))["global_step"] == 7


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_a_file_in_torchs_oldest_format_is_refused(tmp_path):
    (tmp_path / "sys_info").write_bytes(b"")
    with tarfile.open(tmp_path / "old.ckpt", "w") as tar:
        tar.add(tmp_path / "sys_info", "sys_info")
    with pytest.raises(InputError, match=r"old\.ckpt cannot be loaded as a checkpoint: .*legacy \.tar format"):
        files.load(str(tmp_path / "old.ckpt"))


def test_loading_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files.save({"state_dict": Bomb()}, "bomb.ckpt")
    assert files.find_damage("bomb.ckpt") is None
    for read in (files.load, files.peek):
        with pytest.raises(Exception, match=r"(?i)weights_only"):
            read("bomb.ckpt")
    assert not Path("exploded").exists()


# ---- while it is written --------------------------------------------------------------------------------------------


class Ticking:
    """File that calls `tick` before, after and in the middle of each write, with everything so far flushed."""

    def __init__(self, file, tick):
        self.file, self.tick = file, tick

    def write(self, data):
        half = len(data) // 2
        for part in (data[:half], data[half:]):
            self.tick()
            self.file.write(part)
            self.file.flush()
        self.tick()
        return len(data)

    def flush(self):
        self.file.flush()


def save_and_die(path, after):
    """Save in a child process that exits, as by SIGKILL, after `after` lines and writes; return whether it finished."""
    child = os.fork()
    if child == 0:
        ticks = 0

        def tick(*_):
            nonlocal ticks
            ticks += 1
            if ticks > after:
                os._exit(1)

        def trace(frame, event, _):
            if frame.f_code.co_filename == files.__file__:
                tick()
                return trace
            return None

        real_save = torch.save
        files.torch.save = lambda obj, file: real_save(obj, Ticking(file, tick))
        sys.settrace(trace)
        files.save(checkpoint(8), str(path))
        sys.settrace(None)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.slow
def test_killed_at_any_moment_the_name_has_the_old_or_the_new_one_whole(saved):
    seen, after, old = set(), 0, saved.read_bytes()
    is_through = False
    while not is_through:
        saved.write_bytes(old)
        is_through = save_and_die(saved, after)
        assert files.list_checkpoints(str(saved.parent)) == [str(saved)]
        step = files.global_step(str(saved))
        assert whole(saved, step), f"killed at moment {after}"
        seen.add(step)
        after += 1
    assert after > 30
    assert seen == {7, 8}
    assert len(os.listdir(saved.parent)) > 1
    files.remove_leftovers(str(saved.parent))
    assert os.listdir(saved.parent) == [saved.name]


class FullDisk:
    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def flush(self):
        self.file.flush()


@pytest.mark.parametrize("room", [0, 100, 1000])
def test_a_full_disk_leaves_the_old_one_and_nothing_else(saved, room, monkeypatch):
    real_save = torch.save
    monkeypatch.setattr(files.torch, "save", lambda obj, file: real_save(obj, FullDisk(file, room)))
    with pytest.raises(OSError, match="No space left") as raised:
        files.save(checkpoint(8), str(saved))
    assert raised.value.errno == errno.ENOSPC
    assert whole(saved, 7)
    assert os.listdir(saved.parent) == [saved.name]


def test_a_limit_of_the_system_leaves_the_old_one(saved):
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            files.save(checkpoint(8), str(saved))
        except OSError as error:
            os._exit(error.errno)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == errno.EFBIG
    assert whole(saved, 7)
    assert os.listdir(saved.parent) == [saved.name]


def test_the_file_is_on_the_disk_before_it_has_its_name_and_the_name_before_save_returns(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (calls.append(name), real(*args))[1])
    files.save(checkpoint(), str(tmp_path / "a.ckpt"))
    assert calls == ["fsync", "replace", "fsync"]


# ---- folders and URLs -----------------------------------------------------------------------------------------------


def test_only_checkpoints_are_found(saved):
    for name in ("best.ckpt.set-aside", "run_history.json", f".x.ckpt{files.TEMPORARY}12"):
        (saved.parent / name).touch()
    (saved.parent / "folder.ckpt").mkdir()
    assert files.list_checkpoints(str(saved.parent)) == [str(saved)]
    assert files.list_checkpoints(str(saved.parent / "nowhere")) == []


def round_trip(folder):
    path = files.join(folder, "step-00000007.ckpt")
    assert files.list_checkpoints(folder) == []
    files.save(checkpoint(), path)
    assert files.list_checkpoints(folder) == [path]
    assert files.global_step(path) == 7
    assert whole(path, 7)
    assert files.peek(path)["global_step"] == 7
    files.write_text(files.join(folder, "note.json"), "[1]")
    files.write_text(files.join(folder, "note.json"), "[2]")
    assert files.set_aside(path) == f"{path}.set-aside"
    assert files.list_checkpoints(folder) == []
    for number in (2, 3):
        files.write_text(path, str(number))
        assert files.set_aside(path) == f"{path}.set-aside-{number}"
    assert whole(f"{path}.set-aside", 7)
    files.write_text(path, "one more")
    files.remove(path)
    assert files.find_damage(path) == "it is missing"


def test_a_url(tmp_path):
    round_trip("memory://bucket/run/checkpoints")
    round_trip(f"file://{tmp_path}/checkpoints")


def test_an_object_store(store):
    round_trip(store.put("x", b"").removesuffix("x") + "run/checkpoints")
