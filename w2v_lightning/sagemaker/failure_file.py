"""File /opt/ml/output/failure, whose text SageMaker shows as the reason why a job failed."""

import os
import secrets
import traceback
from pathlib import Path

from w2v_lightning.errors import InputError
from w2v_lightning.runtime.signals import PREEMPTED

MAX_CHARACTERS = 1024  # SageMaker truncates longer texts
MAX_MESSAGE = 600  # characters of an exception's message, to leave room for its traceback
STOPPED = (
    "SIGTERM: the job was stopped, a spot instance was reclaimed, or another process of the job has ended (see the"
    " log). The checkpoints are kept: `python -m w2v_lightning resubmit` resumes from them."
)


def write(text: str, path: Path) -> bool:
    """Write `path` atomically; return False if it exists, because the first error is the cause of the others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    temporary.write_text(text[:MAX_CHARACTERS], encoding="utf-8")
    try:
        os.link(temporary, path)  # unlike a rename, a link does not replace an existing file
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    return True


def reason(error: BaseException, who: str) -> str | None:
    """Return a description of the exception that ends the process; None for an exit with status 0.

    An InputError is described by its message, any other exception by type, message, and the last frames of the
    traceback, the innermost one last.

    Args:
        error: the exception.
        who: name of the process, such as "algo-2, rank 5".
    """
    if isinstance(error, InputError):
        text = error.line
    elif isinstance(error, SystemExit):
        if not error.code:
            return None
        text = STOPPED if error.code == PREEMPTED else f"exit status {error.code}"
    else:
        return _with_frames(f"{who}: {type(error).__name__}: {error}"[:MAX_MESSAGE], error)
    return f"{who}: {text}"[:MAX_CHARACTERS]


def _with_frames(text: str, error: BaseException) -> str:
    lines: list[str] = []
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        line = f"\n  {'/'.join(Path(frame.filename).parts[-3:])}:{frame.lineno} {frame.name}: {frame.line}"
        if len(text) + len(line) + sum(map(len, lines)) > MAX_CHARACTERS:
            break
        lines.insert(0, line)
    return text + "".join(lines)
