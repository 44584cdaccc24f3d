"""Choice of the backend, and the reason that the user gets."""

import pytest

from w2v_lightning.strategies.backend import choose_backend, has_smddp
from w2v_lightning.strategies.launcher import launched, launcher_of, obstacle_to_restarts

P4D, G4DN = "ml.p4d.24xlarge", "ml.g4dn.12xlarge"

CASES = [
    # instance type, launcher, library, requested, backend, words in the reason
    (P4D, "mpirun", True, "auto", "smddp", ["ml.p4d.24xlarge", "mpirun"]),
    (P4D, "mpirun", True, "smddp", "smddp", ["ml.p4d.24xlarge"]),
    ("ml.p4de.24xlarge", "mpirun", True, "auto", "smddp", ["ml.p4de.24xlarge"]),
    ("ml.p3dn.24xlarge", "mpirun", True, "smddp", "smddp", ["ml.p3dn.24xlarge"]),
    (P4D, "mpirun", True, "nccl", "nccl", ["NCCL was requested"]),
    (P4D, "torchrun", True, "smddp", "nccl", ["under torchrun", "start the processes with mpirun"]),
    (P4D, "none", True, "smddp", "nccl", ["requires processes started with mpirun"]),
    (P4D, "mpirun", False, "smddp", "nccl", ["not installed", "smdistributed.dataparallel"]),
    (P4D, "torchrun", False, "auto", "nccl", ["not installed", "start the processes with mpirun"]),
    (G4DN, "mpirun", True, "smddp", "nccl", ["ml.p4d.24xlarge", "not on ml.g4dn.12xlarge"]),
    ("ml.g5.48xlarge", "mpirun", True, "auto", "nccl", ["not on ml.g5.48xlarge"]),
    ("ml.g6.12xlarge", "mpirun", True, "auto", "nccl", ["not on ml.g6.12xlarge"]),
    ("ml.p5.48xlarge", "mpirun", True, "smddp", "nccl", ["not on ml.p5.48xlarge"]),
    ("ml.p3.16xlarge", "mpirun", True, "smddp", "nccl", ["not on ml.p3.16xlarge"]),
    ("ml.m5.xlarge", "none", False, "auto", "nccl", ["not on ml.m5.xlarge"]),
    (None, "none", False, "auto", "nccl", ["this is not a SageMaker instance"]),
    (None, "torchrun", True, "smddp", "nccl", ["this is not a SageMaker instance"]),
    (None, "none", False, "nccl", "nccl", ["NCCL was requested"]),
]


@pytest.mark.parametrize(("instance_type", "launcher", "library", "requested", "backend", "words"), CASES)
def test_the_backend_and_why(instance_type, launcher, library, requested, backend, words):
    actual, reason = choose_backend(instance_type, launcher, library, requested)
    assert actual == backend
    assert all(word in reason for word in words)
    assert "\n" not in reason


def test_another_instance_type_is_the_only_advice_where_nothing_else_would_help():
    _, reason = choose_backend(G4DN, "torchrun", False, "smddp")
    assert "torchrun" not in reason
    assert "installed" not in reason


@pytest.mark.parametrize(
    ("environ", "launcher", "rank"),
    [
        ({"TORCHELASTIC_RUN_ID": "none", "RANK": "3"}, "torchrun", 3),
        ({"OMPI_COMM_WORLD_RANK": "2"}, "mpirun", 2),
        ({"OMPI_COMM_WORLD_RANK": "2", "RANK": "2"}, "mpirun", 2),
        ({"TORCHELASTIC_RUN_ID": "none", "OMPI_COMM_WORLD_RANK": "0", "RANK": "1"}, "torchrun", 1),
        ({}, "none", None),
    ],
)
def test_a_launcher_is_known_by_its_variables(environ, launcher, rank):
    assert launcher_of(environ) == launcher
    assert launched("global_rank", environ) == rank


def test_what_lightning_sets_for_its_own_processes_is_no_launchers():
    environ = {"WORLD_SIZE": "2", "LOCAL_RANK": "1", "NODE_RANK": "0"}
    assert launcher_of(environ) == "none"
    assert launched("world_size", environ) is launched("local_rank", environ) is None


def test_restarts_for_which_torchrun_needs_a_setting():
    elastic = {"TORCHELASTIC_MAX_RESTARTS": "3", "WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in obstacle_to_restarts(elastic)
    for name, value in (("USE_AGENT_STORE", "False"), ("MAX_RESTARTS", "0")):
        assert obstacle_to_restarts(elastic | {f"TORCHELASTIC_{name}": value}) is None
    assert obstacle_to_restarts(elastic | {"WORLD_SIZE": "1"}) is None
    assert obstacle_to_restarts({}) is None


def test_the_library_is_found_without_being_imported(monkeypatch, pytestconfig):
    assert not has_smddp()
    monkeypatch.syspath_prepend(pytestconfig.rootpath / "tests" / "standins")
    assert has_smddp()
