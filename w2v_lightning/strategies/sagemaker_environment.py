"""What a SageMaker training job says of its hosts, and Lightning's view of the processes on them."""

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
PORT = 7777  # SageMaker's; all ranks must know it before they can talk


@dataclass(frozen=True)
class Hosts:
    """The hosts of a training job, as one of them sees them."""

    names: tuple[str, ...]
    current: str
    instance_type: str | None
    source: str  # where this was found, for messages

    @property
    def index(self) -> int:
        return self.names.index(self.current)


def find_hosts(environ: Mapping[str, str] = os.environ, resource_config: Path = RESOURCE_CONFIG) -> Hosts | None:
    """What SageMaker says of the job's hosts; None off SageMaker.

    The file comes first: mpirun may have handed this process the variables of another host.

    Raises:
        InputError: the file or the variable SM_HOSTS holds something else than JSON of a job's hosts.
    """
    if resource_config.exists():
        source, found = str(resource_config), _parsed(resource_config.read_text(), str(resource_config))
        found = found if isinstance(found, dict) else {}
        names, current = found.get("hosts"), found.get("current_host")
        instance_type = found.get("current_instance_type")
    elif "SM_HOSTS" in environ:
        source, names = "SM_HOSTS", _parsed(environ["SM_HOSTS"], "SM_HOSTS")
        current, instance_type = environ.get("SM_CURRENT_HOST"), None
    else:
        return None
    if not isinstance(names, list) or not names or (current or names[0]) not in names:
        raise InputError(
            f"{source}: expected the hosts of a training job with this one among them, found hosts {names!r} and this"
            f" host {current!r}."
        )
    instance_type = instance_type or environ.get("SM_CURRENT_INSTANCE_TYPE") or environ.get("SAGEMAKER_INSTANCE_TYPE")
    return Hosts(tuple(names), current or names[0], instance_type, source)


def _parsed(text: str, source: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f'{source} is not JSON such as ["algo-1", "algo-2"]: found {text[:200]!r}.') from error


class SageMakerEnvironment(LightningEnvironment):
    """The processes of a SageMaker job, whether torchrun, mpirun (smddprun) or Lightning itself starts them.

    torchrun and smddprun set RANK, WORLD_SIZE and LOCAL_RANK, mpirun OMPI_COMM_WORLD_*. Where the script was started
    once per host, Lightning starts a process for each other GPU.

    Raises:
        InputError: this is no SageMaker job, or what it says of its hosts cannot be read.
    """

    def __init__(self) -> None:
        super().__init__()
        hosts = find_hosts()
        if hosts is None:
            raise InputError(f"This is no SageMaker training job: there is neither {RESOURCE_CONFIG} nor SM_HOSTS.")
        self.hosts = hosts

    @staticmethod
    def detect() -> bool:
        return find_hosts() is not None

    @property
    def creates_processes_externally(self) -> bool:
        return launched("global_rank") is not None or super().creates_processes_externally

    @property
    def main_address(self) -> str:
        # A single host need not resolve its own name, which is not always in the container's /etc/hosts.
        first = self.hosts.names[0] if len(self.hosts.names) > 1 else "127.0.0.1"
        return os.environ.get("MASTER_ADDR", first)

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
        """One process for every GPU of the job; otherwise machines are paid for, or data dropped, for nothing.

        Raises:
            InputError: the number of processes is another; names what was found.
        """
        if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):
            return  # torchrun goes on with the hosts that are left
        num_hosts, world_size = len(self.hosts.names), launched("world_size") or num_devices * num_nodes
        gpus = int(os.environ.get("SM_NUM_GPUS", torch.cuda.device_count()))
        per_host = gpus or num_devices
        if world_size != num_hosts * per_host or num_devices * num_nodes != world_size:
            raise InputError(
                f"{self.hosts.source} has {num_hosts} host(s) ({', '.join(self.hosts.names)}) with {gpus} GPU(s) each,"
                f" which makes {num_hosts * per_host} processes, but {world_size} were started, and Lightning counts on"
                f" {num_devices} device(s) x {num_nodes} host(s). Start one process per GPU on every host:"
                f" torchrun --nnodes={num_hosts} --nproc_per_node={per_host}, with trainer.num_nodes={num_hosts} and"
                f" trainer.devices={per_host}."
            )

    def teardown(self) -> None:
        if launched("global_rank") is None:  # Lightning takes back what it has set; what a launcher has set stays
            super().teardown()


def devices_and_hosts() -> tuple[int | None, int]:
    """Processes per host (None: not decided by a launcher) and hosts, as launcher or SageMaker says.

    So the same config does for any of them.

    Raises:
        InputError: mpirun has started several processes where nothing would tell Lightning so: each would start others.
    """
    hosts, world_size = find_hosts(), launched("world_size") or 1
    if launcher_of() == "mpirun" and world_size > 1 and not hosts and not MPIEnvironment.detect():
        raise InputError(
            f"mpirun has started {world_size} processes; outside SageMaker Lightning learns of them from mpi4py, which"
            " is not installed: pip install mpi4py, or start with torchrun."
        )
    if per_host := launched("processes_per_host"):
        return per_host, max(1, world_size // per_host)
    return None, len(hosts.names) if hosts else 1
