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

from w2v_lightning.errors import InputError, listed
from w2v_lightning.sagemaker.job import Job

PACKAGE = Path(__file__).parents[1]
CONFIG = "config.yaml"
REQUIREMENTS = "requirements.txt"
CONSTRAINTS = "constraints.txt"
SUFFIXES = (".py", ".yaml", ".csv")
NOT_IN_JOBS = ("catalog/measurements",)  # of the package: read by `plan` and `submit`, never by a job
OF_THE_IMAGE = ("torch", "torchaudio")
MAX_MIB = 10  # the packages are about 1; it is uploaded file by file, and again for each job

SECRETS = {
    "an AWS access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "an AWS secret key": r"(?i)aws_secret_access_key\W{1,5}[0-9a-z/+]{40}(?![0-9a-z/+])",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a Hugging Face token": r"\bhf_[0-9A-Za-z]{34}\b",
}


def write(job: Job, folder: Path) -> None:
    """Fill `folder`, which becomes the source_dir of the job.

    Raises:
        InputError: it would be larger than MAX_MIB, or hold what looks like a credential. `folder` is then of no use.
    """
    _copy(PACKAGE, folder / PACKAGE.name)
    config = {**job.config, "data": {**job.config.get("data", {}), "root": job.data}}
    (folder / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    (folder / REQUIREMENTS).write_text("\n".join([f"-c {CONSTRAINTS}", *requirements(job)]) + "\n", encoding="utf-8")
    (folder / CONSTRAINTS).write_text("\n".join(constraints(job.image)) + "\n", encoding="utf-8")
    _check_size(folder)
    _check_secrets(folder)


def requirements(job: Job) -> list[str]:
    """Return what pip installs in the container: this package's dependencies except torch and torchaudio.

    Those two are the image's own. The extra `aws` is added where the loader reads from S3 itself, without the SDK.
    """
    extra = "aws" if job.input_mode == "stream" else ""
    return [str(wanted) for wanted in _requirements(extra) if wanted.name not in (*OF_THE_IMAGE, "sagemaker")]


def _requirements(extra: str) -> Iterator[Requirement]:
    """Yield the requirements in this package's metadata, with those of one extra, without their markers."""
    for line in requires("w2v-lightning") or ():
        wanted = Requirement(line)
        if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
            wanted.marker = None
            yield wanted


def constraints(image: str) -> list[str]:
    """For pip: no other release of torch than the image's, which its tag names. An image of one's own may name none.

    pip keeps what is installed where that will do; if something wants another torch, this ends the job before training,
    instead of replacing a build that suits the image's CUDA and its torchaudio.
    """
    release = re.search(r":(\d+\.\d+)[.-]", image)
    return [f"torch=={release[1]}.*"] if release else []


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
        largest = sorted(sizes, key=sizes.get, reverse=True)[:3]
        raise InputError(
            f"The code for the job is {mib:.0f} MiB, more than {MAX_MIB}: the largest files are {listed(largest)}. Data"
            " belongs to S3 (--data); move what is not code out of these folders."
        )


def _check_secrets(folder: Path) -> None:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        text = path.read_text(encoding="utf-8", errors="replace")
        for what, pattern in SECRETS.items():
            if re.search(pattern, text):
                raise InputError(
                    f"{path.relative_to(folder)} holds what looks like {what}, and would be uploaded with the job. Take"
                    " it out, and change the key; the job has the rights of its role."
                )
