"""Ranks and hosts of a SageMaker job whose processes are started by torchrun, mpirun or Lightning."""

import json

import pytest
from lightning.fabric.plugins.environments import MPIEnvironment

from w2v_lightning.errors import InputError
from w2v_lightning.strategies.launcher import VARIABLES
from w2v_lightning.strategies.sagemaker_environment import SageMakerEnvironment, devices_and_hosts, find_hosts

TWO_HOSTS = {"SM_HOSTS": '["algo-1", "algo-2"]', "SM_CURRENT_HOST": "algo-2", "SM_NUM_GPUS": "4"}
TORCHRUN = {
    **{"TORCHELASTIC_RUN_ID": "none", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"},
    **{"GROUP_RANK": "1", "MASTER_ADDR": "algo-1", "MASTER_PORT": "29400"},
}
MPIRUN = {
    **{"OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "8"},
    **{"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"},
}
SMDDPRUN = MPIRUN | {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}


@pytest.fixture(autouse=True)
def job(monkeypatch):
    """Set the variables of a job."""
    known = [name for names in VARIABLES.values() for name in names] + list(TORCHRUN) + list(TWO_HOSTS)
    for name in [
        *known,
        "NODE_RANK",
        "TORCHELASTIC_RESTART_COUNT",
        "SM_CURRENT_INSTANCE_TYPE",
        "SAGEMAKER_INSTANCE_TYPE",
    ]:
        monkeypatch.delenv(name, raising=False)

    def set_variables(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_variables


@pytest.mark.parametrize("launcher", [TORCHRUN, MPIRUN, SMDDPRUN], ids=["torchrun", "mpirun", "smddprun"])
def test_ranks_as_the_launcher_set_them(job, launcher):
    job(**TWO_HOSTS, **launcher)
    environment = SageMakerEnvironment()
    environment.set_world_size(1)  # Lightning calls this
    environment.set_global_rank(0)
    assert environment.creates_processes_externally
    assert (environment.global_rank(), environment.local_rank(), environment.node_rank()) == (5, 1, 1)
    assert (environment.world_size(), environment.main_address) == (8, "algo-1")
    assert devices_and_hosts() == (4, 2)
    environment.validate_settings(num_devices=4, num_nodes=2)
    environment.teardown()
    assert environment.world_size() == 8


def test_a_script_started_once_per_host_leaves_the_other_processes_to_lightning(job, monkeypatch):
    job(**TWO_HOSTS)
    environment = SageMakerEnvironment()
    assert not environment.creates_processes_externally
    assert devices_and_hosts() == (None, 2)
    environment.validate_settings(num_devices=4, num_nodes=2)
    assert (environment.node_rank(), environment.main_address, environment.main_port) == (1, "algo-1", 7777)
    job(LOCAL_RANK="3", WORLD_SIZE="8", NODE_RANK="1")  # as Lightning does in the processes it starts
    environment.set_world_size(8)
    environment.set_global_rank(7)
    assert environment.creates_processes_externally
    assert (environment.global_rank(), environment.local_rank(), environment.world_size()) == (7, 3, 8)


def test_a_single_host_is_found_without_resolving_its_name(job):
    job(SM_HOSTS='["algo-1"]')
    assert SageMakerEnvironment().main_address == "127.0.0.1"


def test_off_sagemaker_there_is_no_such_environment():
    assert not SageMakerEnvironment.detect()
    assert devices_and_hosts() == (None, 1)
    with pytest.raises(InputError, match=r"This is not a SageMaker training job: neither .* exists"):
        SageMakerEnvironment()


def test_mpirun_elsewhere_is_refused_where_nothing_tells_lightning_of_it(job, monkeypatch):
    job(**MPIRUN)
    with pytest.raises(InputError, match=r"started 8 processes.*mpi4py"):
        devices_and_hosts()
    monkeypatch.setattr(MPIEnvironment, "detect", lambda: True)
    assert devices_and_hosts() == (4, 2)


def test_the_file_comes_before_the_variables_of_another_host(job, tmp_path):
    job(**TWO_HOSTS, SM_CURRENT_INSTANCE_TYPE="ml.g5.xlarge")
    actual = {"hosts": ["algo-1", "algo-2", "algo-3"], "current_host": "algo-3"}
    path = tmp_path / "resourceconfig.json"
    path.write_text(json.dumps(actual | {"current_instance_type": "ml.p4d.24xlarge"}))
    hosts = find_hosts(resource_config=path)
    assert (hosts.names, hosts.index) == (("algo-1", "algo-2", "algo-3"), 2)
    assert hosts.instance_type == "ml.p4d.24xlarge"
    path.write_text(json.dumps(actual))
    assert find_hosts(resource_config=path).instance_type == "ml.g5.xlarge"


def test_hosts_are_counted_in_the_parsed_list_not_in_the_characters(job):
    job(**TWO_HOSTS)
    assert len(SageMakerEnvironment().hosts.names) == 2


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"SM_HOSTS": "algo-1"}, ["SM_HOSTS is not JSON", "'algo-1'"]),
        ({"SM_HOSTS": '"algo-1"'}, ["SM_HOSTS", "'algo-1'"]),
        ({"SM_HOSTS": "[]"}, ["SM_HOSTS", "[]"]),
        ({"SM_HOSTS": '["algo-1"]', "SM_CURRENT_HOST": "algo-7"}, ["'algo-7'", "['algo-1']"]),
    ],
)
def test_hosts_that_cannot_be_read_are_named(job, variables, words):
    job(**variables)
    with pytest.raises(InputError) as raised:
        SageMakerEnvironment()
    assert all(word in str(raised.value) for word in words)


def test_a_damaged_file_is_named(job, tmp_path):
    job(**TWO_HOSTS)
    path = tmp_path / "resourceconfig.json"
    for text in ("", "{", "[]", '{"hosts": "algo-1", "current_host": "algo-1"}'):
        path.write_text(text)
        with pytest.raises(InputError, match=r"resourceconfig\.json"):
            find_hosts(resource_config=path)


@pytest.mark.parametrize(
    ("variables", "num_devices", "num_nodes", "words"),
    [
        ({}, 4, 10, ["2 host(s) (algo-1, algo-2)", "4 GPU(s)", "8 processes", "40 were started", "num_nodes=2"]),
        ({}, 4, 1, ["8 processes, but 4", "4 device(s) x 1 host(s)"]),
        (TORCHRUN | {"WORLD_SIZE": "4"}, 4, 1, ["8 processes, but 4 were started"]),
        (TORCHRUN, 4, 1, ["8 were started", "4 device(s) x 1 host(s)"]),
        (MPIRUN | {"OMPI_COMM_WORLD_SIZE": "2"}, 1, 2, ["SM_HOSTS", "8 processes, but 2 were started"]),
    ],
)
def test_another_number_of_processes_than_gpus_is_refused(job, variables, num_devices, num_nodes, words):
    job(**TWO_HOSTS, **variables)
    with pytest.raises(InputError) as raised:
        SageMakerEnvironment().validate_settings(num_devices, num_nodes)
    assert all(word in str(raised.value) for word in words), str(raised.value)


def test_torchrun_may_go_on_with_the_hosts_that_are_left(job):
    job(**TWO_HOSTS, **TORCHRUN | {"WORLD_SIZE": "4"}, TORCHELASTIC_RESTART_COUNT="1")
    SageMakerEnvironment().validate_settings(num_devices=4, num_nodes=1)


def test_a_host_without_gpus_has_as_many_processes_as_lightning_has_devices(job):
    job(**TWO_HOSTS | {"SM_NUM_GPUS": "0"}, **TORCHRUN | {"WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "3"})
    SageMakerEnvironment().validate_settings(num_devices=3, num_nodes=2)
