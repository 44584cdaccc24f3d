"""Background writing: training waits for the copy alone, nothing is lost, and failures are reported."""

import errno
import logging
import pickle
import subprocess
import sys
import threading
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch

from w2v_lightning.checkpoints import files
from w2v_lightning.checkpoints.recent import drain
from w2v_lightning.checkpoints.writer import BackgroundCheckpointIO, on_host
from w2v_lightning.errors import InputError

LIMIT_S = 60


def checkpoint(step=1):
    return {"state_dict": {"weight": torch.full((3,), float(step))}, "global_step": step}


class SlowDisk:
    """Fake disk that writes once `may_write` is set."""

    def __init__(self):
        self.may_write = threading.Event()
        self.written = []

    def save(self, checkpoint, path):
        assert self.may_write.wait(LIMIT_S)
        files.save(checkpoint, path)
        self.written.append(path)


@pytest.fixture
def disk():
    disk = SlowDisk()
    yield disk
    disk.may_write.set()


def test_training_goes_on_while_it_is_written_and_changes_nothing_of_it(disk, tmp_path):
    writer, state = BackgroundCheckpointIO(disk.save), checkpoint(1)
    writer.save_checkpoint(state, tmp_path / "a.ckpt")
    assert disk.written == []  # save_checkpoint has returned before the write
    state["state_dict"]["weight"].fill_(99)
    state["global_step"] = 99
    disk.may_write.set()
    writer.drain()
    loaded = files.load(str(tmp_path / "a.ckpt"))
    assert loaded["state_dict"]["weight"].tolist() == [1, 1, 1]
    assert loaded["global_step"] == 1
    writer.teardown()


def test_no_more_than_two_copies_lie_in_memory(disk, tmp_path):
    writer = BackgroundCheckpointIO(disk.save)
    for step in (1, 2):
        writer.save_checkpoint(checkpoint(step), tmp_path / f"{step}.ckpt")
    third = threading.Thread(target=writer.save_checkpoint, args=(checkpoint(3), tmp_path / "3.ckpt"))
    assert not writer._copies.acquire(blocking=False)
    third.start()
    disk.may_write.set()
    third.join(LIMIT_S)
    writer.drain()
    assert len(disk.written) == 3
    assert writer._copies.acquire(blocking=False)
    writer.teardown()


def test_the_old_one_goes_after_the_new_one_has_come(disk, tmp_path):
    files.save(checkpoint(1), str(tmp_path / "1.ckpt"))
    writer = BackgroundCheckpointIO(disk.save)
    writer.save_checkpoint(checkpoint(2), tmp_path / "2.ckpt")
    writer.remove_checkpoint(tmp_path / "1.ckpt")
    assert files.list_checkpoints(str(tmp_path)) == [str(tmp_path / "1.ckpt")]
    disk.may_write.set()
    writer.teardown()
    assert files.list_checkpoints(str(tmp_path)) == [str(tmp_path / "2.ckpt")]
    writer.remove_checkpoint(tmp_path / "2.ckpt")  # removed at once, since the run is over
    assert files.list_checkpoints(str(tmp_path)) == []


def test_one_that_cannot_be_removed_is_named_and_keeps_no_other(tmp_path, monkeypatch, caplog):
    remove = files.remove

    def refuse_first(path):
        if path.endswith("1.ckpt"):
            raise PermissionError(errno.EPERM, "Operation not permitted")
        remove(path)

    def fail():
        raise OSError("the store is busy")

    monkeypatch.setattr(files, "remove", refuse_first)
    writer = BackgroundCheckpointIO()
    for step in (1, 2, 3):
        writer.save_checkpoint(checkpoint(step), tmp_path / f"{step}.ckpt")
    writer.remove_later(fail)
    writer.remove_later(lambda: [str(tmp_path / "1.ckpt"), str(tmp_path / "2.ckpt")])
    writer.teardown()
    assert "Old checkpoints could not be listed for removal; all are kept: the store is busy" in caplog.text
    assert f"Checkpoint {tmp_path}/1.ckpt could not be removed: " in caplog.text
    assert files.list_checkpoints(str(tmp_path)) == [str(tmp_path / "1.ckpt"), str(tmp_path / "3.ckpt")]


def test_loading_waits_for_what_is_being_written(disk, tmp_path):
    writer = BackgroundCheckpointIO(disk.save)
    writer.save_checkpoint(checkpoint(5), tmp_path / "a.ckpt")
    threading.Timer(0.05, disk.may_write.set).start()
    assert writer.load_checkpoint(tmp_path / "a.ckpt")["global_step"] == 5
    writer.teardown()


def test_a_full_disk_is_reported_keeps_the_old_ones_and_is_not_forgotten(tmp_path, caplog):
    def save(checkpoint, path):
        if checkpoint["global_step"] == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        files.save(checkpoint, path)

    writer = BackgroundCheckpointIO(save)
    trainer = SimpleNamespace(strategy=SimpleNamespace(checkpoint_io=writer))
    writer.save_checkpoint(checkpoint(1), tmp_path / "1.ckpt")
    drain(trainer)
    with caplog.at_level(logging.ERROR):
        writer.save_checkpoint(checkpoint(2), tmp_path / "2.ckpt")
        writer.remove_checkpoint(tmp_path / "1.ckpt")
        writer.drain()
    assert "2.ckpt could not be written: No space left on device (it needs" in caplog.text
    assert "MiB are free). Earlier checkpoints are kept, and training continues." in caplog.text
    assert files.list_checkpoints(str(tmp_path)) == [str(tmp_path / "1.ckpt")]
    with pytest.raises(InputError, match=r"The last checkpoint, .*2\.ckpt could not be written: No space left"):
        drain(trainer)
    writer.save_checkpoint(checkpoint(3), tmp_path / "3.ckpt")
    writer.remove_checkpoint(tmp_path / "1.ckpt")
    drain(trainer)
    assert files.list_checkpoints(str(tmp_path)) == [str(tmp_path / "3.ckpt")]
    writer.teardown()


@pytest.mark.slow
def test_a_process_ends_after_its_checkpoint(tmp_path):
    code = """
import sys, time, torch
from w2v_lightning.checkpoints import files
from w2v_lightning.checkpoints.writer import BackgroundCheckpointIO
def save(checkpoint, path):
    time.sleep(0.3)  # by then the process is exiting
    files.save(checkpoint, path)
BackgroundCheckpointIO(save).save_checkpoint({"global_step": 4}, sys.argv[1])
sys.exit(75)
"""
    path = str(tmp_path / "a.ckpt")
    subprocess.run([sys.executable, "-c", code, path], check=False, timeout=LIMIT_S, capture_output=True)
    assert files.find_damage(path) is None


def test_the_copy_shares_no_memory_and_keeps_types_and_names():
    weights = OrderedDict(weight=torch.zeros(2, dtype=torch.bfloat16))
    weights._metadata = {"": {"version": 2}}
    shared = torch.ones(2)
    original = {"state_dict": weights, "betas": (0.9, [0.98]), "a": shared, "b": [shared], "frozen": torch.ones(1)[0]}
    copied = on_host(original)
    assert type(copied["state_dict"]) is OrderedDict
    assert copied["state_dict"]._metadata == weights._metadata
    assert copied["betas"] == (0.9, [0.98])
    assert copied["a"] is copied["b"][0]
    assert copied["a"].data_ptr() != shared.data_ptr()
    assert copied["state_dict"]["weight"].dtype == torch.bfloat16
    assert copied["state_dict"]["weight"].data_ptr() != weights["weight"].data_ptr()


def test_it_can_be_sent_to_another_process():
    assert pickle.loads(pickle.dumps(BackgroundCheckpointIO())).failure is None


def test_storage_options_are_refused(tmp_path):
    with pytest.raises(TypeError, match="storage_options"):
        BackgroundCheckpointIO().save_checkpoint({}, tmp_path / "a.ckpt", storage_options={"a": 1})
