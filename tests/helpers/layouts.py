"""Small sound files and text files for tests of corpora in other layouts."""

from pathlib import Path

import numpy as np
import soundfile

from w2v_lightning.prepare.columns import ColumnNames
from w2v_lightning.prepare.sources import recognise
from w2v_lightning.prepare.utterance import Rejected, Utterance

RATE = 16_000


def write_sound(path: Path, seconds: float = 0.5, channels: int = 1, **options) -> Path:
    """Write a tone, quieter in each further channel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tone = 0.5 * np.sin(np.arange(round(seconds * RATE)) * 0.2)
    soundfile.write(path, np.stack([tone / (i + 1) for i in range(channels)], axis=1), RATE, **options)
    return path


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def items_of(source: Path, /, **columns: str) -> tuple[list[Utterance], list[Rejected]]:
    """Return what a source yields: utterances, and those that its reader rejects."""
    items = list(recognise(source, ColumnNames(**columns)))
    return [i for i in items if isinstance(i, Utterance)], [i for i in items if isinstance(i, Rejected)]


def kind_of(path: Path) -> str:
    return recognise(path).kind
