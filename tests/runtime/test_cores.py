import os
import subprocess
import sys

import pytest

from w2v_lightning.runtime import cores

SCRIPT = "import os{}, w2v_lightning; print(*(os.environ.get(n) for n in ('OMP_WAIT_POLICY', 'KMP_BLOCKTIME')))"


@pytest.mark.parametrize(
    ("first", "variables", "expected"),
    [
        ("", {}, "PASSIVE 0"),
        ("", {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"),
        ("", {"KMP_BLOCKTIME": "7"}, "None 7"),
        ("", {"GOMP_SPINCOUNT": "7"}, "None None"),
        ("; import sys; sys.modules['torch'] = None; import os", {}, "None None"),
    ],
)
def test_threads_do_not_spin_unless_the_user_says_so_or_torch_is_already_loaded(first, variables, expected):
    environment = {name: value for name, value in os.environ.items() if name not in cores.SPINNING} | variables
    script = SCRIPT.format(first)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.fixture
def cgroups(tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "CGROUPS", tmp_path)
    monkeypatch.setattr(cores, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(cores, "_cores_by_affinity", lambda: 8)
    return tmp_path


@pytest.mark.parametrize(
    ("inner", "outer", "expected"),
    [
        ("max 100000", "max 100000", 8),
        ("150000 100000", "max 100000", 2),
        ("max 100000", "300000 100000", 3),
        ("50000 100000", "300000 100000", 1),
        ("1600000 100000", "max 100000", 8),
    ],
)
def test_the_least_quota_on_the_way_to_the_root_counts(cgroups, inner, outer, expected):
    write(cgroups, membership="0::/job/step\n")
    write(cgroups / "job", cpu__max=outer)
    write(cgroups / "job" / "step", cpu__max=inner)
    assert cores.usable_cores() == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", 8), ("250000", 3)])
def test_quota_of_version_1_within_a_container(cgroups, quota, expected):
    write(cgroups, membership="4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n0::/\n")
    write(cgroups / "cpu,cpuacct", cpu__cfs_quota_us=quota, cpu__cfs_period_us="100000")
    assert cores.usable_cores() == expected


def test_without_cgroups_the_affinity_counts(cgroups):
    assert cores.usable_cores() == 8


def test_threads_follow_a_quota_but_not_against_the_user(cgroups, monkeypatch):
    monkeypatch.setattr(cores, "sys", type("System", (), {"modules": {}}))  # torch is not loaded yet
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    write(cgroups, membership="0::/\n")
    cores.share_cores()
    assert "OMP_NUM_THREADS" not in os.environ
    write(cgroups, cpu__max="300000 100000")
    cores.share_cores()
    assert os.environ["OMP_NUM_THREADS"] == "3"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    cores.share_cores()
    assert os.environ["OMP_NUM_THREADS"] == "5"
