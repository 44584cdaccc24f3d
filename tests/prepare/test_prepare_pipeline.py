import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from w2v_lightning.prepare import hashes, progress
from w2v_lightning.prepare.hashes import HashSet
from w2v_lightning.prepare.pipeline import in_order
from w2v_lightning.prepare.progress import Progress


def test_results_come_in_order_with_few_items_taken_up():
    taken = 0

    def items():
        nonlocal taken
        for i in range(100):
            taken += 1
            yield i

    with ThreadPoolExecutor(3) as pool:
        for number, result in enumerate(in_order(pool, lambda i: i * i, items(), ahead=8)):
            assert result == number**2
            assert taken <= number + 8
    assert number == 99


@pytest.mark.parametrize("max_recent", [1, 7, 1 << 16])
def test_hash_set_knows_what_was_added_and_nothing_else(monkeypatch, max_recent):
    monkeypatch.setattr(hashes, "MAX_RECENT", max_recent)
    known = HashSet()
    for i in range(100):
        assert f"19-{i}" not in known
        known.add(f"19-{i}")
        assert f"19-{i}" in known
    assert all(f"19-{i}" in known for i in range(100))
    assert not any(f"84-{i}" in known for i in range(100))


def advanced(shown: Progress, utterances: int, num_bytes: int) -> Progress:
    for _ in range(utterances):
        shown.advance(num_bytes)
    return shown


def test_progress_tells_the_time_left_by_bytes():
    shown = advanced(Progress(total_bytes=400_000_000, total_utterances=None), 1000, 100_000)
    assert shown.line(elapsed_s=10.0) == "1,000 utterances  10.0 MB/s  0:00:30 left"


def test_progress_tells_the_time_left_by_rows_where_bytes_are_not_known():
    shown = advanced(Progress(total_bytes=None, total_utterances=3000), 1000, 0)
    assert shown.line(elapsed_s=1800.0) == "1,000 utterances  1:00:00 left"


def test_progress_is_a_line_now_and_then_in_a_log(monkeypatch, capsys):
    clock = iter(range(1000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with Progress(total_bytes=None, total_utterances=None) as shown:
        advanced(shown, 23, 1_000_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "5 utterances  1.0 MB/s"
    assert len(lines) == 4


def test_progress_is_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress, "BAR_EVERY_S", 0)
    with Progress(total_bytes=10, total_utterances=None) as shown:
        advanced(shown, 2, 5)
        assert shown._bar.finished
