"""The folder that becomes the job's code: the two packages, the configs, the resolved config, and what to install.

Only what is listed here goes in: data, checkpoints, .git and a developer's credentials are never even looked at.
"""

import re
import shutil
import tomllib
from pathlib import Path

import yaml

from launch.job import Job
from w2v_lightning.errors import InputError, listed

CHECKOUT = Path(__file__).parents[1]
CONFIG = "config.yaml"
REQUIREMENTS = "requirements.txt"
CONSTRAINTS = "constraints.txt"
FOLDERS = {"w2v_lightning": (".py",), "launch": (".py", ".yaml", ".csv"), "configs": (".yaml",)}
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
    for name, suffixes in FOLDERS.items():
        _copy(CHECKOUT / name, folder / name, suffixes)
    config = {**job.config, "data": {**job.config.get("data", {}), "root": job.data}}
    (folder / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    (folder / REQUIREMENTS).write_text("\n".join([f"-c {CONSTRAINTS}", *requirements(job)]) + "\n", encoding="utf-8")
    (folder / CONSTRAINTS).write_text("\n".join(constraints(job.image)) + "\n", encoding="utf-8")
    _check_size(folder)
    _check_secrets(folder)


def requirements(job: Job) -> list[str]:
    """What pip installs in the container: this package's dependencies but for torch and torchaudio, the image's own."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"]
    if job.input_mode == "stream":
        wanted = wanted + [line for line in project["optional-dependencies"]["aws"] if _name(line) != "sagemaker"]
    return [line for line in wanted if _name(line) not in OF_THE_IMAGE]


def constraints(image: str) -> list[str]:
    """For pip: no other release of torch than the image's, which its tag names. An image of one's own may name none.

    pip keeps what is installed where that will do; if something wants another torch, this ends the job before training,
    instead of replacing a build that suits the image's CUDA and its torchaudio.
    """
    release = re.search(r":(\d+\.\d+)[.-]", image)
    return [f"torch=={release[1]}.*"] if release else []


def _name(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0].lower()


def _copy(source: Path, target: Path, suffixes: tuple[str, ...]) -> None:
    """Visible regular files with these suffixes; a link may lead anywhere."""
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        is_hidden = any(part.startswith(".") for part in relative.parts)
        if path.suffix in suffixes and path.is_file() and not path.is_symlink() and not is_hidden:
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
