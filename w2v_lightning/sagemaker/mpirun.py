"""On every host of an SMDDP job: what starts its processes with mpirun, as AWS's own launcher does it.

The first host runs mpirun, which reaches the others by SSH (AWS's images have the keys); those wait until it is done.
Never run on AWS: no image with torch 2.8 or later has SMDDP (docs/distributed.md).
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from w2v_lightning.errors import InputError
from w2v_lightning.sagemaker import failure
from w2v_lightning.sagemaker.container import SHUTDOWN_S
from w2v_lightning.strategies.sagemaker_environment import Hosts, find_hosts

GPUS = 8  # of each instance that SMDDP works on
SSH_PORT, SMDDP_PORT = 22, 7592
REACHABLE_WITHIN_S = 600
DAEMON = "orted"  # of mpirun, on each other host


def main() -> None:
    """Become mpirun on the first host; on another one return when its work is done.

    Raises:
        InputError: this is no SageMaker job, or the hosts do not reach each other.
    """
    hosts = find_hosts()
    if hosts is None:
        raise InputError(
            "w2v_lightning.sagemaker.mpirun is for a SageMaker training job: there is no resourceconfig.json."
        )
    subprocess.Popen(["/usr/sbin/sshd", "-D"])
    if hosts.index > 0:
        _wait(lambda: _is_running(DAEMON), f"{hosts.names[0]} has not started {DAEMON} on {hosts.current}")
        while _is_running(DAEMON):
            time.sleep(1)
        return
    for host in hosts.names[1:]:
        _wait(lambda host=host: _answers(host), f"{host} does not answer on port {SSH_PORT}")
    arguments = mpirun(hosts, os.environ.get("SM_NETWORK_INTERFACE_NAME", "eth0"))
    os.execvp(arguments[0], arguments)  # noqa: S606  so that SIGTERM reaches it


def mpirun(hosts: Hosts, interface: str) -> list[str]:
    """The command of the first host. Another one than the SDK's, which starts the processes of one host only.

    Args:
        hosts: of the job.
        interface: of the network between them.
    """
    exported = {
        **{"NCCL_SOCKET_IFNAME": interface, "FI_PROVIDER": "efa", "RDMAV_FORK_SAFE": "1"},
        **{"FI_EFA_USE_DEVICE_RDMA": "1", "SAGEMAKER_INSTANCE_TYPE": hosts.instance_type},
    }
    if len(hosts.names) == 1:
        exported |= {"SMDATAPARALLEL_USE_SINGLENODE": "1"}
    else:
        exported |= {"SMDATAPARALLEL_USE_HOMOGENEOUS": "1"}
        exported |= {"SMDATAPARALLEL_SERVER_ADDR": hosts.names[0], "SMDATAPARALLEL_SERVER_PORT": SMDDP_PORT}
    if shim := find_spec("gethostname"):  # of AWS's images: each process then sees the name algo-N
        exported["LD_PRELOAD"] = shim.origin
    settings = {
        **{"btl_tcp_if_include": interface, "oob_tcp_if_include": interface, "plm_rsh_no_tree_spawn": 1},
        **{"plm_rsh_num_concurrent": len(hosts.names), "pml": "ob1", "btl": "^openib"},
        **{"orte_abort_on_non_zero_status": 1, "btl_vader_single_copy_mechanism": "none"},
        "odls_base_sigkill_timeout": SHUTDOWN_S,  # for a checkpoint after SIGTERM
    }
    own = [name for name in os.environ if name.startswith("SM_") and "CURRENT_HOST" not in name]
    return [
        *("mpirun", "--allow-run-as-root", "--tag-output", "--oversubscribe"),
        *("--host", ",".join(f"{host}:{GPUS}" for host in hosts.names), "-np", str(GPUS * len(hosts.names))),
        *(part for name, value in settings.items() for part in ("-mca", name, str(value))),
        *(part for name, value in exported.items() for part in ("-x", f"{name}={value}")),
        *(part for name in ("PATH", "LD_LIBRARY_PATH", *own) for part in ("-x", name)),
        *("smddprun", "python3", "-m", "mpi4py", "-m", "w2v_lightning.sagemaker.container"),
    ]


def _answers(host: str) -> bool:
    try:
        socket.create_connection((host, SSH_PORT), timeout=5).close()
    except OSError:
        return False
    return True


def _is_running(name: str) -> bool:
    for path in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):  # it has just ended
            if path.read_text().strip() == name:
                return True
    return False


def _wait(condition: Callable[[], bool], what: str) -> None:
    give_up_at = time.monotonic() + REACHABLE_WITHIN_S
    while not condition():
        if time.monotonic() > give_up_at:
            raise InputError(f"mpirun: {what}, for {REACHABLE_WITHIN_S} s. Submit the job again.")
        time.sleep(1)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        failure.write(error.line, Path(os.environ["SM_OUTPUT_FAILURE"]))
        sys.exit(f"error: {error.line}")
