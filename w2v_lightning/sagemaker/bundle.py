"""Build the source folder of a job: this package, the resolved config, and the requirements to install.

Only what is listed here goes in: data, checkpoints, .git and a developer's credentials are never even looked at.
"""

import re
import shutil
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

import yaml
from packaging.requirements import Requirement

from w2v_lightning.catalog.images import SMDDP_TORCH
from w2v_lightning.errors import InputError, listed
from w2v_lightning.sagemaker.job import Job

PACKAGE = Path(__file__).parents[1]
CONFIG = "config.yaml"
REQUIREMENTS = "requirements.txt"
CONSTRAINTS = "constraints.txt"
SMDDP_CONSTRAINTS = Path(__file__).with_name("smddp_constraints.txt")
SUFFIXES = (".py", ".yaml", ".csv", ".txt")
NOT_IN_JOBS = ("catalog/measurements",)  # folders that `plan` and `submit` read, but jobs do not
FROM_IMAGE = ("torch", "torchaudio")
MAX_MIB = 10  # the package is about 1 MiB; each job uploads it again, file by file

SECRETS = {
    "an AWS access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "an AWS secret key": r"(?i)aws_secret_access_key\W{1,5}[0-9a-z/+]{40}(?![0-9a-z/+])",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a Hugging Face token": r"\bhf_[0-9A-Za-z]{34}\b",
}


def write(job: Job, folder: Path) -> None:
    """Fill `folder`, which becomes the source_dir of the job.

    Raises:
        InputError: the folder is larger than MAX_MIB or contains what looks like a credential; it must not be used.
    """
    _copy(PACKAGE, folder / PACKAGE.name)
    config = {**job.config, "data": {**job.config.get("data", {}), "root": job.data}}
    (folder / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    (folder / REQUIREMENTS).write_text("\n".join([f"-c {CONSTRAINTS}", *requirements(job)]) + "\n", encoding="utf-8")
    (folder / CONSTRAINTS).write_text("\n".join(constraints(job.image, job.uses_mpirun)) + "\n", encoding="utf-8")
    _check_size(folder)
    _check_secrets(folder)


def requirements(job: Job) -> list[str]:
    """Return what pip installs in the container: this package's dependencies except torch and torchaudio.

    The image brings those two. If the loader reads from S3 itself, the extra `aws` is added, without the SageMaker SDK.
    """
    extra = "aws" if job.input_mode == "stream" else ""
    return [
        str(requirement) for requirement in _requirements(extra) if requirement.name not in (*FROM_IMAGE, "sagemaker")
    ]


def _requirements(extra: str) -> Iterator[Requirement]:
    """Yield the requirements in this package's metadata, with those of one extra, without their markers."""
    for line in requires("w2v-lightning") or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            requirement.marker = None
            yield requirement


def constraints(image: str, uses_mpirun: bool = False) -> list[str]:
    """Return pip's constraints: the torch release in the image's tag; none if the tag does not name one.

    The image's torch build suits its CUDA and its torchaudio. If a requirement needs another release, the job ends
    before training instead of replacing that build.
    """
    release = re.search(r":(\d+\.\d+)[.-]", image)
    lines = [f"torch=={release[1]}.*"] if release else []
    # The image of SMDDP has a torch that the newest transformers refuses; an image without a release in its tag may be
    # derived from it.
    needs_old_packages = release[1] == SMDDP_TORCH if release else uses_mpirun
    if needs_old_packages:
        text = SMDDP_CONSTRAINTS.read_text(encoding="utf-8")
        lines += [line for line in text.splitlines() if line and not line.startswith("#") and line not in lines]
    return lines


def _copy(source: Path, target: Path) -> None:
    """Copy visible regular files with SUFFIXES; links are left out, because they may lead anywhere."""
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        is_hidden = any(part.startswith(".") for part in relative.parts)
        is_left_out = any(relative.is_relative_to(folder) for folder in NOT_IN_JOBS)
        if path.suffix in SUFFIXES and path.is_file() and not (path.is_symlink() or is_hidden or is_left_out):
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / relative)


def _check_size(folder: Path) -> None:
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    mib = sum(sizes.values()) / 2**20
    if mib > MAX_MIB:
        largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:3]
        raise InputError(
            f"The code for the job is {mib:.0f} MiB, more than {MAX_MIB}: the largest files are {listed(largest)}. Data"
            " belongs in S3 (--data); move everything but code out of these folders."
        )


def _check_secrets(folder: Path) -> None:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        text = path.read_text(encoding="utf-8", errors="replace")
        for what, pattern in SECRETS.items():
            if re.search(pattern, text):
                raise InputError(
                    f"{path.relative_to(folder)} contains what looks like {what}, and would be uploaded with the job."
                    " Remove it, and replace the key; the job has the permissions of its role."
                )
