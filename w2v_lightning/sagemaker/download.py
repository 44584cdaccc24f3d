"""Command `download`: a job's model, reports, TensorBoard logs and checkpoints, each complete or absent."""

import platform
import secrets
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from w2v_lightning.command_line import Parser, parse, parser_of
from w2v_lightning.errors import InputError
from w2v_lightning.sagemaker import aws_session
from w2v_lightning.sagemaker.aws_errors import explain_aws_errors
from w2v_lightning.sagemaker.training_job import TrainingJob, describe

TEMPORARY = ".incomplete-"


@dataclass(frozen=True)
class DownloadOptions:
    """Fetch a job's model, reports and TensorBoard logs into a folder.

    Args:
        name: name of a job, or of a run (its newest job).
        to: folder to write; default: runs/JOB.
        checkpoints: download of the checkpoints, too; for a running job, usually all there is.
        region: AWS region; default: AWS_REGION or that of the AWS profile.
    """

    name: str
    to: Path | None = None
    checkpoints: bool = False
    region: str | None = None


@explain_aws_errors()
def main(args: Sequence[str]) -> int:
    """Download what a job has left, and print the folders; return the exit status."""
    options = parse(DownloadOptions, "download", args, positional=["name"])
    boto_session = aws_session.boto_session(options.region)
    job = describe(boto_session.client("sagemaker"), options.name)
    folder = options.to or Path("runs", job.name)
    made = download(boto_session.client("s3"), job, folder, options.checkpoints)
    if not made:
        hint = "" if job.has_ended else " It has not ended; --checkpoints downloads what it has saved."
        raise InputError(f"{job.name} ({job.status}) has no model, reports or logs at {job.output}.{hint}")
    for path in made:
        print(path)
    return 0


def parser() -> Parser:
    """Return the parser of the options."""
    return parser_of(DownloadOptions, "download", positional=["name"])


def download(s3: Any, job: TrainingJob, folder: Path, with_checkpoints: bool = False) -> list[Path]:
    """Fetch what the job has left into FOLDER/model, reports, tensorboard and checkpoints.

    Returns:
        The folders that were made, one for each part that exists in S3.

    Raises:
        InputError: a folder exists already, an archive is damaged or unsafe, or this Python cannot unpack it safely.
    """
    uris = {name: uri for name, uri in _uris(job, with_checkpoints).items() if _objects(s3, uri)}
    for name, uri in uris.items():
        if _is_archive(uri) and not hasattr(tarfile, "data_filter"):
            version = platform.python_version()
            raise InputError(f"{uri} cannot be unpacked safely by Python {version}: use 3.11.4 or later.")
        if (folder / name).exists():
            raise InputError(f"{folder / name} already exists: remove it, or choose another folder with --to.")
    for name, uri in uris.items():
        with complete_or_absent(folder / name) as temporary:
            (_fetch_archive if _is_archive(uri) else _fetch)(s3, uri, temporary)
    return [folder / name for name in uris]


@contextmanager
def complete_or_absent(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`, which is renamed to `folder` at the end, or removed after an error."""
    temporary = folder.with_name(f"{TEMPORARY}{folder.name}-{secrets.token_hex(4)}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def extract(archive: Path, folder: Path, name: str) -> None:
    """Unpack a .tar.gz into `folder`, and nothing outside of it.

    Raises:
        InputError: a member leads out of the folder, or the archive is damaged; the message calls the archive `name`.
    """
    try:
        with tarfile.open(archive, "r:gz") as tar:
            tar.extractall(folder, filter="data")
    except tarfile.FilterError as error:
        raise InputError(f"{name} is unsafe and was discarded: {error}.") from error
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise InputError(f"{name} cannot be unpacked: {error}.") from error


def _uris(job: TrainingJob, with_checkpoints: bool) -> dict[str, str]:
    """Return for each folder the URI of its archive, or the prefix of the URIs of its files."""
    uris = {"model": f"{job.output}/model.tar.gz", "reports": f"{job.output}/output.tar.gz"}
    if job.tensorboard:
        uris["tensorboard"] = f"{job.tensorboard}/"
    if with_checkpoints and job.checkpoints:
        uris["checkpoints"] = f"{job.checkpoints}/"
    return uris


def _is_archive(uri: str) -> bool:
    return uri.endswith(".tar.gz")


def _fetch_archive(s3: Any, uri: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=TEMPORARY) as packed:
        (archive,) = _fetch(s3, uri, Path(packed))
        extract(archive, folder, uri)


def _fetch(s3: Any, uri: str, folder: Path) -> list[Path]:
    """Download all objects whose URIs begin with `uri`; file names are what follows the last slash of `uri`.

    boto3's transfer manager writes the files: it retries parts that fail, and holds only a few of them in memory.
    """
    start = urlsplit(uri).path.rfind("/")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    paths = []
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        for item in _objects(s3, uri):
            paths.append(_inside(folder, item["Key"][start:], uri))
            task = progress.add_task(paths[-1].name, total=item["Size"])
            s3.download_file(
                _bucket(uri), item["Key"], str(paths[-1]), Callback=lambda n, task=task: progress.advance(task, n)
            )
    return paths


def _objects(s3: Any, uri: str) -> list[dict[str, Any]]:
    """Return the objects whose URIs begin with `uri`, without the empty ones by which consoles mark folders."""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=_bucket(uri), Prefix=urlsplit(uri).path.lstrip("/"))
    return [item for page in pages for item in page.get("Contents", []) if not item["Key"].endswith("/")]


def _bucket(uri: str) -> str:
    return urlsplit(uri).netloc


def _inside(folder: Path, name: str, uri: str) -> Path:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{uri}: the object {name!r} is unsafe: it would be written outside of its folder.")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
