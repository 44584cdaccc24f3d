"""Training container without Docker: a job's request runs in Linux namespaces, as root, with /opt/ml.

The mount namespace has a tmpfs on /opt/ml, SageMaker's three config files and its mounts. The first process of the PID
namespace is the entry point, which SageMaker signals. The network namespace has the hosts of the job and no other
network.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

LIMIT_S = 240
MOUNTS = ("checkpoints", "model", "output")  # folders that the container writes, kept after its end
UNSHARE = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")

# An overlay, so that /opt/ml need not exist, and the rest of /opt stays visible.
SETUP = """
set -e
mount -t tmpfs tmpfs "$SCRATCH"
mkdir "$SCRATCH/upper" "$SCRATCH/work"
mount -t overlay overlay -o "lowerdir=/opt,upperdir=$SCRATCH/upper,workdir=$SCRATCH/work" /opt
mkdir -p /opt/ml && mount -t tmpfs tmpfs /opt/ml
mount --bind "$HOST/hosts" /etc/hosts
mkdir -p /opt/ml/input/config && cp "$HOST"/config/* /opt/ml/input/config/
for name in $MOUNTS; do mkdir /opt/ml/$name && mount --bind "$HOST/$name" /opt/ml/$name; done
mkdir /opt/ml/input/data
for name in $COPIED; do cp -r "$CHANNELS/$name" /opt/ml/input/data/; done
for name in $MOUNTED; do
    at=/opt/ml/input/data/$name
    mkdir "$at" && mount --bind "$CHANNELS/$name" "$at" && mount -o remount,bind,ro "$at"
done
cd /
exec env -i "${VARIABLES[@]}" "$@"
"""


def obstacle() -> str | None:
    """Return why this machine cannot run such a container; None if it can."""
    probe = "ip link set lo up && mount -t tmpfs t $0 && mkdir $0/u $0/w"
    probe += " && mount -t overlay o -o lowerdir=/opt,upperdir=$0/u,workdir=$0/w /opt"
    with tempfile.TemporaryDirectory() as folder:
        command = [*UNSHARE, "--net", "bash", "-c", probe, folder]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        except OSError as error:
            return str(error)
    return f"no namespaces here: {done.stderr.strip()}" if done.returncode else None


@contextmanager
def network():
    """Yield the PID of a process that holds a network namespace with only a loopback interface."""
    holder = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep 1000"], stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout.readline() == b"up\n"
        yield holder.pid
    finally:
        holder.kill()
        holder.wait()


class Host:
    """Host of a job.

    Args:
        folder: folder of the files that the container writes; new for each start, except for restored checkpoints.
        request: CreateTrainingJob request.
        channels: folder of the job's channels.
        names: names of all hosts.
        index: index of this host in `names`.
    """

    def __init__(self, folder: Path, request: dict, channels: Path, names: list[str], index: int) -> None:
        self.folder, self.request, self.channels = folder, request, channels
        self.log = folder / "log"
        for name in (*MOUNTS, "config", "scratch", "bin"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "hosts").write_text("127.0.0.1 localhost " + " ".join(names) + "\n")
        no_gpus = folder / "bin" / "nvidia-smi"
        no_gpus.write_text("#!/bin/sh\nexit 9\n")
        no_gpus.chmod(0o755)
        self._configure(names, index)

    def _configure(self, names: list[str], index: int) -> None:
        resources = {"current_host": names[index], "hosts": names, "network_interface_name": "lo"}
        resources |= {"current_instance_type": "ml.c5.xlarge", "current_group_name": "homogeneousCluster"}
        inputs = {name: {"TrainingInputMode": mode} for name, mode in self._input_modes.items()}
        configs = {"resourceconfig": resources, "inputdataconfig": inputs}
        configs["hyperparameters"] = self.request.get("HyperParameters", {})
        for name, content in configs.items():
            (self.folder / "config" / f"{name}.json").write_text(json.dumps(content))

    @property
    def _input_modes(self) -> dict[str, str]:
        return {channel["ChannelName"]: channel.get("InputMode", "File") for channel in self.request["InputDataConfig"]}

    @property
    def variables(self) -> dict[str, str]:
        own = {"TRAINING_JOB_NAME": self.request["TrainingJobName"], "HOME": str(self.folder), "OMP_NUM_THREADS": "1"}
        path = os.pathsep.join([str(self.folder / "bin"), str(Path(sys.executable).parent), "/usr/bin", "/bin"])
        return own | {"PATH": path, "HF_HUB_OFFLINE": "1"} | self.request.get("Environment", {})

    def start(self, network_pid: int) -> None:
        algorithm = self.request["AlgorithmSpecification"]
        variables = " ".join(f"{name}='{value}'" for name, value in self.variables.items())
        script = f"VARIABLES=({variables})\n{SETUP}"
        environment = {"PATH": os.environ["PATH"], "HOST": self.folder, "SCRATCH": self.folder / "scratch"}
        environment |= {"CHANNELS": self.channels, "MOUNTS": " ".join(MOUNTS)}
        for variable, wanted in (("COPIED", "File"), ("MOUNTED", "FastFile")):
            environment[variable] = " ".join(name for name, mode in self._input_modes.items() if mode == wanted)
        command = ["nsenter", f"--net=/proc/{network_pid}/ns/net", *UNSHARE, "bash", "-c", script, "container"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *algorithm["ContainerEntrypoint"], *algorithm["ContainerArguments"]],
                env={name: str(value) for name, value in environment.items()}, stdout=log, stderr=log,
            )  # fmt: skip

    def stop(self) -> None:
        """Send SIGTERM to the container's first process, as SageMaker does."""
        (first,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        os.kill(int(first), signal.SIGTERM)

    def status(self) -> int:
        return self.process.wait(LIMIT_S)

    def kill(self) -> None:
        self.process.kill()  # --kill-child of unshare then kills the whole PID namespace
        self.process.wait()

    def wait_for(self, text: str) -> None:
        give_up_at = time.monotonic() + LIMIT_S
        while text not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < give_up_at, self.log.read_text()
            time.sleep(0.05)
