"""ffmpeg, an optional reader of formats that libsndfile lacks, such as AAC and AMR."""

import io
import logging
import shutil
import subprocess
import tempfile
from functools import cache

log = logging.getLogger(__name__)
TIMEOUT_S = 600


def command_line(name: str) -> str:
    """Return the command by which a user converts a file to FLAC."""
    stem = name.rpartition(".")[0] if "." in name.rpartition("/")[2] else name
    return f'ffmpeg -i "{name}" "{stem}.flac"'


def is_available() -> bool:
    """Return whether ffmpeg is on PATH."""
    return shutil.which("ffmpeg") is not None


def as_wav(source: str | io.BytesIO) -> io.BytesIO:
    """Return the first audio stream of a file as 16-bit WAV, at its own rate and number of channels.

    Raises:
        ValueError: ffmpeg cannot decode it, with its reason, or takes too long.
    """
    _announce()
    if isinstance(source, str):
        return _run(source)
    with tempfile.NamedTemporaryFile(prefix="w2v_lightning-") as file:  # ffmpeg must be able to seek in MP4
        file.write(source.getbuffer())
        file.flush()
        return _run(file.name)


def _run(path: str) -> io.BytesIO:
    options = ["-nostdin", "-v", "error", "-protocol_whitelist", "file,pipe", "-i", f"file:{path}"]
    output = ["-map", "0:a:0", "-c:a", "pcm_s16le", "-f", "wav", "pipe:1"]
    try:
        done = subprocess.run(  # noqa: S603  # no shell, and the path is one argument
            ["ffmpeg", *options, *output],  # noqa: S607  # where the user installed it
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"ffmpeg did not finish within {TIMEOUT_S} s") from None
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    if done.returncode or lines:  # a truncated file gives an error line and status 0
        raise ValueError(f"ffmpeg: {lines[-1] if lines else f'exit status {done.returncode}'}")
    return io.BytesIO(done.stdout)


@cache
def _announce() -> None:
    log.info("Reading audio through ffmpeg that libsndfile does not read; converting it once to FLAC is faster.")
