"""Hosts of a SageMaker training job, and the Lightning cluster environment for the processes on them."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments import LightningEnvironment, MPIEnvironment

from w2v_lightning.errors import InputError
from w2v_lightning.strategies.launcher import launched, launcher_of

RESOURCE_CONFIG = Path("/opt/ml/input/config/resourceconfig.json")
PORT = 7777  # SageMaker's default; all ranks must know it before they can communicate


@dataclass(frozen=True)
class Hosts:
    """Hosts of a training job, and which of them this process runs on."""

    names: tuple[str, ...]
    current: str
    instance_type: str | None
    source: str  # file or variable that names the hosts, for messages

    @property
    def index(self) -> int:
        return self.names.index(self.current)


def find_hosts(environ: Mapping[str, str] = os.environ, resource_config: Path = RESOURCE_CONFIG) -> Hosts | None:
    """Return the job's hosts according to SageMaker; None outside SageMaker.

    The file has precedence over the variables, because mpirun may have passed those of another host to this process.

    Raises:
        InputError: the file or the variable SM_HOSTS is not JSON that names the hosts of a job.
    """
    if resource_config.exists():
        source, config = str(resource_config), _parsed(resource_config.read_text(), str(resource_config))
        config = config if isinstance(config, dict) else {}
        names, current = config.get("hosts"), config.get("current_host")
        instance_type = config.get("current_instance_type")
    elif "SM_HOSTS" in environ:
        source, names = "SM_HOSTS", _parsed(environ["SM_HOSTS"], "SM_HOSTS")
        current, instance_type = environ.get("SM_CURRENT_HOST"), None
    else:
        return None
    if not isinstance(names, list) or not names or (current or names[0]) not in names:
        raise InputError(
            f"{source}: expected the hosts of a training job, including this one; found hosts {names!r} and this host"
            f" {current!r}."
        )
    instance_type = instance_type or environ.get("SM_CURRENT_INSTANCE_TYPE") or environ.get("SAGEMAKER_INSTANCE_TYPE")
    return Hosts(tuple(names), current or names[0], instance_type, source)


def _parsed(text: str, source: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f'{source} is not JSON such as ["algo-1", "algo-2"]: found {text[:200]!r}.') from error


class SageMakerEnvironment(LightningEnvironment):
    """Cluster environment of a SageMaker job, whether torchrun, mpirun (smddprun) or Lightning starts its processes.

    torchrun and smddprun set RANK, WORLD_SIZE and LOCAL_RANK, mpirun sets OMPI_COMM_WORLD_*. If the script is started
    once per host, Lightning starts the processes for the other GPUs.

    Raises:
        InputError: this is not a SageMaker job, or its description of the hosts is invalid.
    """

    def __init__(self) -> None:
        super().__init__()
        hosts = find_hosts()
        if hosts is None:
            raise InputError(
                f"This is not a SageMaker training job: neither {RESOURCE_CONFIG} nor the variable SM_HOSTS exists."
            )
        self.hosts = hosts

    @staticmethod
    def detect() -> bool:
        return find_hosts() is not None

    @property
    def creates_processes_externally(self) -> bool:
        return launched("global_rank") is not None or super().creates_processes_externally

    @property
    def main_address(self) -> str:
        # A single host uses the loopback address: its own name is not always in the container's /etc/hosts.
        default = self.hosts.names[0] if len(self.hosts.names) > 1 else "127.0.0.1"
        return os.environ.get("MASTER_ADDR", default)

    @property
    def main_port(self) -> int:
        return int(os.environ.get("MASTER_PORT", PORT))

    def world_size(self) -> int:
        return launched("world_size") or super().world_size()

    def global_rank(self) -> int:
        rank = launched("global_rank")
        return super().global_rank() if rank is None else rank

    def local_rank(self) -> int:
        rank = launched("local_rank")
        return super().local_rank() if rank is None else rank

    def node_rank(self) -> int:
        return int(os.environ.get("GROUP_RANK", self.hosts.index))  # torchrun numbers hosts in its own order

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Check that there is one process for every GPU; otherwise GPUs would be paid for but idle, or data dropped.

        Raises:
            InputError: the number of processes is wrong; the message names the numbers.
        """
        if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):
            return  # after a restart torchrun continues with the remaining hosts
        num_hosts, world_size = len(self.hosts.names), launched("world_size") or num_devices * num_nodes
        gpus = int(os.environ.get("SM_NUM_GPUS", torch.cuda.device_count()))
        per_host = gpus or num_devices
        if world_size != num_hosts * per_host or num_devices * num_nodes != world_size:
            raise InputError(
                f"{self.hosts.source} has {num_hosts} host(s) ({', '.join(self.hosts.names)}) with {gpus} GPU(s) each,"
                f" which makes {num_hosts * per_host} processes, but {world_size} were started, and Lightning expects"
                f" {num_devices} device(s) x {num_nodes} host(s). Start one process per GPU on every host:"
                f" torchrun --nnodes={num_hosts} --nproc_per_node={per_host}, with trainer.num_nodes={num_hosts} and"
                f" trainer.devices={per_host}."
            )

    def teardown(self) -> None:
        if launched("global_rank") is None:  # remove only what Lightning itself set, not a launcher's variables
            super().teardown()


def devices_and_hosts() -> tuple[int | None, int]:
    """Return processes per host (None: not set by a launcher) and number of hosts, from the launcher or SageMaker.

    They are defaults of trainer.devices and trainer.num_nodes, so that one config works under any launcher.

    Raises:
        InputError: mpirun has started several processes, but Lightning cannot detect that and each of them would start
            further processes.
    """
    hosts, world_size = find_hosts(), launched("world_size") or 1
    if launcher_of() == "mpirun" and world_size > 1 and not hosts and not MPIEnvironment.detect():
        raise InputError(
            f"mpirun has started {world_size} processes; outside SageMaker Lightning detects them with mpi4py, which is"
            " not installed: pip install mpi4py, or start with torchrun."
        )
    if per_host := launched("processes_per_host"):
        return per_host, max(1, world_size // per_host)
    return None, len(hosts.names) if hosts else 1
