"""Launcher of an SMDDP job on each of its hosts, which starts the processes with mpirun, as AWS's own launcher does.

The first host runs mpirun, which reaches the other hosts by SSH (AWS's images have the keys); they wait until it ends.
This has never run on AWS; docs/smddp.md names the image and says what was tested.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from w2v_lightning.errors import InputError
from w2v_lightning.sagemaker import failure_file
from w2v_lightning.sagemaker.container import SHUTDOWN_S
from w2v_lightning.strategies.sagemaker_environment import Hosts, find_hosts

GPUS = 8  # per instance of all types that SMDDP supports
SSH_PORT, SMDDP_PORT = 22, 7592
REACHABLE_WITHIN_S = 600
DAEMON = "orted"  # process that mpirun starts on each other host


def main() -> None:
    """Replace this process by mpirun on the first host; on other hosts wait until mpirun has ended.

    Raises:
        InputError: this is not a SageMaker job, or the hosts do not reach each other.
    """
    hosts = find_hosts()
    if hosts is None:
        raise InputError(
            "w2v_lightning.sagemaker.mpirun runs only in a SageMaker training job: resourceconfig.json was not found."
        )
    subprocess.Popen(["/usr/sbin/sshd", "-D"])
    if hosts.index > 0:
        _wait(lambda: _is_running(DAEMON), f"{hosts.names[0]} has not started {DAEMON} on {hosts.current}")
        while _is_running(DAEMON):
            time.sleep(1)
        return
    for host in hosts.names[1:]:
        _wait(partial(_answers, host), f"{host} did not answer on port {SSH_PORT}")
    arguments = mpirun(hosts, os.environ.get("SM_NETWORK_INTERFACE_NAME", "eth0"))
    os.execvp(arguments[0], arguments)  # noqa: S606  exec, so that mpirun receives SIGTERM


def mpirun(hosts: Hosts, interface: str) -> list[str]:
    """Return the command of the first host, for the processes of all hosts; the SDK's own starts those of one host.

    Args:
        hosts: hosts of the job.
        interface: network interface between them.
    """
    exported: dict[str, object] = {
        **{"NCCL_SOCKET_IFNAME": interface, "FI_PROVIDER": "efa", "RDMAV_FORK_SAFE": "1"},
        **{"FI_EFA_USE_DEVICE_RDMA": "1", "SAGEMAKER_INSTANCE_TYPE": hosts.instance_type},
    }
    if len(hosts.names) == 1:
        exported |= {"SMDATAPARALLEL_USE_SINGLENODE": "1"}
    else:
        exported |= {"SMDATAPARALLEL_USE_HOMOGENEOUS": "1"}
        exported |= {"SMDATAPARALLEL_SERVER_ADDR": hosts.names[0], "SMDATAPARALLEL_SERVER_PORT": SMDDP_PORT}
    if shim := find_spec("gethostname"):  # a library in AWS's images that makes gethostname return algo-N
        exported["LD_PRELOAD"] = shim.origin
    settings = {
        **{"btl_tcp_if_include": interface, "oob_tcp_if_include": interface, "plm_rsh_no_tree_spawn": 1},
        **{"plm_rsh_num_concurrent": len(hosts.names), "pml": "ob1", "btl": "^openib"},
        **{"orte_abort_on_non_zero_status": 1, "btl_vader_single_copy_mechanism": "none"},
        "odls_base_sigkill_timeout": SHUTDOWN_S,  # leaves time for a checkpoint after SIGTERM
    }
    sagemaker_variables = [name for name in os.environ if name.startswith("SM_") and "CURRENT_HOST" not in name]
    return [
        *("mpirun", "--allow-run-as-root", "--tag-output", "--oversubscribe"),
        *("--host", ",".join(f"{host}:{GPUS}" for host in hosts.names), "-np", str(GPUS * len(hosts.names))),
        *(part for name, value in settings.items() for part in ("-mca", name, str(value))),
        *(part for name, value in exported.items() for part in ("-x", f"{name}={value}")),
        *(part for name in ("PATH", "LD_LIBRARY_PATH", *sagemaker_variables) for part in ("-x", name)),
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
        with suppress(OSError):  # the process may have just ended
            if path.read_text().strip() == name:
                return True
    return False


def _wait(condition: Callable[[], bool], problem: str) -> None:
    give_up_at = time.monotonic() + REACHABLE_WITHIN_S
    while not condition():
        if time.monotonic() > give_up_at:
            raise InputError(f"mpirun: {problem} within {REACHABLE_WITHIN_S} s. Submit the job again.")
        time.sleep(1)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        failure_file.write(error.line, Path(os.environ["SM_OUTPUT_FAILURE"]))
        sys.exit(f"error: {error.line}")
