"""Text that starts a training outside SageMaker: a task of SkyPilot, or a line of torchrun."""

import shlex
from collections.abc import Sequence
from typing import Any

import yaml

from w2v_lightning.planner.candidates import Candidate

PORT = 29400  # of torchrun's rendezvous
SKYPILOT_CLOUD = {"ec2": "aws"}  # names that differ
# Folder of a bucket, because an interrupted machine's disk is lost. MOUNT_CACHED can rename files, as checkpoints need.
CHECKPOINTS = "/checkpoints"
BUCKET = {"name": "YOUR-BUCKET", "mode": "MOUNT_CACHED"}


def torchrun_command(candidate: Candidate, config_files: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Return the command that trains on one machine with the candidate's GPUs."""
    return ["torchrun", f"--nproc_per_node={candidate.machine.gpus}", *_fit(config_files, overrides)]


def skypilot_task(candidate: Candidate, config_files: Sequence[str], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the content of the YAML that `sky launch`, or on spot `sky jobs launch`, runs."""
    offer = candidate.offer
    assert offer is not None
    cloud = SKYPILOT_CLOUD.get(offer.place, offer.place)
    resources: dict[str, Any] = {"cloud": cloud, "instance_type": offer.instance_type}
    if offer.region != "all":
        resources["region"] = offer.region
    if candidate.is_spot:
        resources["use_spot"] = True
    task: dict[str, Any] = {
        "name": "w2v-lightning",
        "resources": resources,
        "num_nodes": candidate.count,
        "workdir": ".",
    }
    if candidate.is_spot:
        task["file_mounts"] = {CHECKPOINTS: BUCKET}
        overrides = [*overrides, "--trainer.default_root_dir", f"{CHECKPOINTS}/run"]
    return task | {"setup": "pip install -e .", "run": _run(candidate, config_files, overrides)}


def skypilot_text(task: dict[str, Any]) -> str:
    """Return the YAML of a task."""
    return yaml.safe_dump(task, sort_keys=False, width=10_000)


def _run(candidate: Candidate, config_files: Sequence[str], overrides: Sequence[str]) -> str:
    if candidate.count == 1:
        return shlex.join(torchrun_command(candidate, config_files, overrides))
    return (
        f"torchrun --nnodes=$SKYPILOT_NUM_NODES --nproc_per_node={candidate.machine.gpus} --rdzv_backend=c10d"
        f' --rdzv_id=w2v --rdzv_endpoint="$(echo "$SKYPILOT_NODE_IPS" | head -n 1):{PORT}"'
        f" {shlex.join(_fit(config_files, overrides))}"
    )


def _fit(config_files: Sequence[str], overrides: Sequence[str]) -> list[str]:
    configs = [part for file in config_files for part in ("--config", file)]
    return ["-m", "w2v_lightning", "fit", *configs, *overrides]
