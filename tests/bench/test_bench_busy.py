import json
import subprocess
import sys
from pathlib import Path

from w2v_lightning.__main__ import main
from w2v_lightning.bench import busy


def fake_fit(command, env, **_options):
    """Write the throughput that a run of `fit` would have: twice as much with threads that sleep."""
    folder = Path(command[command.index("--trainer.default_root_dir") + 1])
    speed = 20.0 if env.get("OMP_WAIT_POLICY") == "PASSIVE" else 10.0
    (folder / "throughput.json").write_text(json.dumps({"audio_s_per_s": speed}))
    return subprocess.CompletedProcess(command, 0, "", "")


def test_all_ways_take_turns(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(busy.subprocess, "run", fake_fit)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")  # of this shell: must not reach the runs
    report = tmp_path / "busy.json"
    assert main(["bench", "busy", "demo.yaml", "--loops", "1", "--repetitions", "2", "--json", str(report)]) == 0
    runs = json.loads(report.read_text())["runs"]
    turns = [(run["threads"], run["loops"], run["audio_s_per_s"]) for run in runs]
    assert turns == [("sleep", 0, 20), ("spin", 0, 10), ("sleep", 1, 20), ("spin", 1, 10)] * 2
    assert "100%" in capsys.readouterr().out


def test_a_failed_run_ends_in_its_last_line(monkeypatch, capsys):
    failed = subprocess.CompletedProcess([], 2, "", "warning\nerror: no such file")
    monkeypatch.setattr(busy.subprocess, "run", lambda *_args, **_options: failed)
    assert main(["bench", "busy", "demo.yaml"]) == 2
    assert "fit --config demo.yaml failed (2): error: no such file" in capsys.readouterr().err


def test_busy_loops_end_with_the_block(monkeypatch):
    started = []
    popen = subprocess.Popen

    def recorded(command):
        started.append(popen(command))
        return started[-1]

    monkeypatch.setattr(busy.subprocess, "Popen", recorded)
    with busy.busy_loops(2):
        assert [loop.poll() for loop in started] == [None, None]
    assert len(started) == 2
    assert all(loop.poll() is not None for loop in started)


def test_busy_loops_end_with_a_parent_that_is_killed():
    script = "import os\nfrom w2v_lightning.bench.busy import busy_loops\nwith busy_loops(1): os.kill(os.getpid(), 9)"
    # Returns only when nobody holds the pipe any more, the loop included.
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=False)
    assert done.returncode == -9
