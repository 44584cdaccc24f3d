"""The command `download`: a job's model, reports, TensorBoard logs and checkpoints, each complete or absent."""

import argparse
import platform
import secrets
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from w2v_lightning.errors import InputError
from w2v_lightning.sagemaker import aws_session
from w2v_lightning.sagemaker.training_job import TrainingJob, add_options, describe

TEMPORARY = ".incomplete-"


def add_parser(commands: Any) -> None:
    """`download`."""
    parser = commands.add_parser("download", help="fetch a job's model, reports and TensorBoard logs")
    add_options(parser)
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="default: runs/NAME")
    parser.add_argument("--checkpoints", action="store_true", help="these too; a job that runs has little else yet")
    parser.set_defaults(run=_run)


def download(s3: Any, job: TrainingJob, folder: Path, with_checkpoints: bool = False) -> list[Path]:
    """Fetch what the job has left into FOLDER/model, reports, tensorboard and checkpoints.

    Returns:
        The folders that were made. Of what lies nowhere in S3, none is made.

    Raises:
        InputError: one of them is there already, an archive is damaged or not to be trusted, or Python cannot tell.
    """
    found = {name: uri for name, uri in _places(job, with_checkpoints).items() if _objects(s3, uri)}
    for name, uri in found.items():
        if _is_archive(uri) and not hasattr(tarfile, "data_filter"):
            version = platform.python_version()
            raise InputError(f"{uri} cannot be unpacked safely by Python {version}: it takes 3.11.4 or later.")
        if (folder / name).exists():
            raise InputError(f"{folder / name} is there already: remove it, or choose another folder with --to.")
    for name, uri in found.items():
        with complete_or_absent(folder / name) as temporary:
            (_fetch_archive if _is_archive(uri) else _fetch)(s3, uri, temporary)
    return [folder / name for name in found]


@contextmanager
def complete_or_absent(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its name at the end, or is removed."""
    temporary = folder.with_name(f"{TEMPORARY}{folder.name}-{secrets.token_hex(4)}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def extract(archive: Path, folder: Path, name: str) -> None:
    """Unpack a .tar.gz; nothing of it can come to lie outside of `folder`.

    Raises:
        InputError: a member would, or the archive is damaged; the message calls it `name`.
    """
    try:
        with tarfile.open(archive, "r:gz") as tar:
            tar.extractall(folder, filter="data")
    except tarfile.FilterError as error:
        raise InputError(f"{name} is not to be trusted, and was not kept: {error}.") from error
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise InputError(f"{name} cannot be unpacked: {error}.") from error


def _run(options: argparse.Namespace) -> None:
    boto_session = aws_session.boto_session(options.region)
    job = describe(boto_session.client("sagemaker"), options.name)
    folder = options.to or Path("runs", job.name)
    made = download(boto_session.client("s3"), job, folder, options.checkpoints)
    if not made:
        hint = "" if job.has_ended else " It has not ended; --checkpoints fetches what it has saved."
        raise InputError(f"{job.name} ({job.status}) has left no model, reports or logs at {job.output}.{hint}")
    for path in made:
        print(path)


def _places(job: TrainingJob, with_checkpoints: bool) -> dict[str, str]:
    """Each folder with the URI of an archive, or of what begins with it."""
    places = {"model": f"{job.output}/model.tar.gz", "reports": f"{job.output}/output.tar.gz"}
    if job.tensorboard:
        places["tensorboard"] = f"{job.tensorboard}/"
    if with_checkpoints and job.checkpoints:
        places["checkpoints"] = f"{job.checkpoints}/"
    return places


def _is_archive(uri: str) -> bool:
    return uri.endswith(".tar.gz")


def _fetch_archive(s3: Any, uri: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=TEMPORARY) as packed:
        (archive,) = _fetch(s3, uri, Path(packed))
        extract(archive, folder, uri)


def _fetch(s3: Any, uri: str, folder: Path) -> list[Path]:
    """All objects whose URIs begin so, as files in a folder, which are named by what follows the last slash of `uri`.

    S3's own transfer writes them: parts that fail on their way are asked for again, and memory holds only some.
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
    """Those whose URIs begin so, but for the empty ones by which consoles mark folders."""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=_bucket(uri), Prefix=urlsplit(uri).path.lstrip("/"))
    return [item for page in pages for item in page.get("Contents", []) if not item["Key"].endswith("/")]


def _bucket(uri: str) -> str:
    return urlsplit(uri).netloc


def _inside(folder: Path, name: str, uri: str) -> Path:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{uri}: the object {name!r} would lie outside of its folder; it is not to be trusted.")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
