"""Demo corpus, made by speech synthesis on first use, so that the first run needs no download.

espeak-ng speaks digit strings and short commands in several accents and voices. The folders look like LibriSpeech's:
`SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER-0000.flac` beside `SPEAKER-CHAPTER.trans.txt`.
"""

from __future__ import annotations

import ctypes
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from w2v_lightning.errors import InputError
from w2v_lightning.runtime.user_cache import cache_root

if TYPE_CHECKING:
    import numpy as np

# Part of the folder's name: increase it with every change that changes the recordings.
CORPUS_VERSION = "1"
SAMPLE_RATE_HZ = 16_000
CHAPTERS_PER_SPEAKER = 2
UTTERANCES_PER_CHAPTER = {"train-demo": 3, "dev-demo": 20}
PITCHES = (30, 70)  # espeak-ng's scale, 0 to 99
RATES_WPM = (120, 180)

# An espeak-ng voice is an accent (phonemes) with a variant (timbre). Validation shares neither with training.
# Many voices with a few utterances each: with 40 voices instead of 280, a tiny model memorises the voices.
ACCENTS = {
    "train-demo": ("en-us", "en", "en-029", "en-us-nyc", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-gb-scotland"),
    "dev-demo": ("en-gb-x-rp",),
}
TRAIN_VARIANTS = """
    m1 m2 m4 m6 m8 f1 f3 f5 Alex Alicia Andrea Andy Annie Denis Diogo Gene Hugo Lee Marco Mario Michael adam anika
    antonio aunty belinda benjamin boris david edward grandma ian john linda paul rob steph travis victor zac
"""
VARIANTS = {"train-demo": tuple(TRAIN_VARIANTS.split()), "dev-demo": ("m3", "m5", "m7", "f2", "f4")}
FIRST_SPEAKER_ID = {"train-demo": 1001, "dev-demo": 2001}

DIGITS = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")
COMMANDS = (
    "TURN {LEFT|RIGHT}",
    "TURN THE {LIGHT|RADIO} {ON|OFF}",
    "{OPEN|CLOSE} THE {DOOR|WINDOW}",
    "GO {UP|DOWN} # STEPS",
    "SET TIMER FOR # {MINUTES|SECONDS}",
    "CALL # # # #",
    "PLAY {SONG|CHANNEL} #",
    "WHAT'S THE {TIME|WEATHER}",
    "DON'T {STOP|WAIT}",
    "# # #",
    "# # # #",
    "# # # # #",
)


@dataclass(frozen=True)
class Chapter:
    """Recording session of one speaker: all its utterances have the same voice, pitch and speed."""

    split: str
    speaker_id: int
    number: int
    voice: str
    pitch: int
    rate_wpm: int

    @property
    def name(self) -> str:
        """Name of the chapter in file names: SPEAKER-CHAPTER."""
        return f"{self.speaker_id}-{self.number}"


def make_demo_corpus(cache_dir: str | Path | None = None) -> Path:
    """Return the folder of `train-demo` and `dev-demo`, after making them if they are missing (takes seconds).

    The recordings are identical to the byte on every run.
    """
    cache = Path(cache_dir) if cache_dir is not None else cache_root()
    root = cache / f"demo-corpus-v{CORPUS_VERSION}"
    if not root.is_dir():
        _make_whole(root, UTTERANCES_PER_CHAPTER)
    return root


def _make_whole(root: Path, utterances_per_chapter: dict[str, int]) -> None:
    """Make the corpus in a temporary folder and rename it to `root`, so that `root` is always complete."""
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".demo-", dir=root.parent) as workshop:
        corpus = Path(workshop) / "corpus"
        _speak_corpus(corpus, utterances_per_chapter)
        try:
            corpus.rename(root)
        except OSError:
            if not root.is_dir():  # otherwise another process was faster, and its corpus is identical
                raise


def _speak_corpus(root: Path, utterances_per_chapter: dict[str, int]) -> None:
    espeak = _Espeak()
    for chapter in _chapters():
        rng = random.Random(f"text {chapter.name}")
        texts = [_sentence(rng) for _ in range(utterances_per_chapter[chapter.split])]
        _write_chapter(root, chapter, texts, espeak)


def _chapters() -> Iterator[Chapter]:
    """Yield every accent of a split with each of its variants, at pitches and speeds drawn with a fixed seed."""
    for split, first_id in FIRST_SPEAKER_ID.items():
        for speaker_id, (accent, variant) in enumerate(product(ACCENTS[split], VARIANTS[split]), first_id):
            rng = random.Random(f"voice {speaker_id}")
            for number in range(1, CHAPTERS_PER_SPEAKER + 1):
                pitch, rate_wpm = rng.randint(*PITCHES), rng.randint(*RATES_WPM)
                yield Chapter(split, speaker_id, number, f"{accent}+{variant}", pitch, rate_wpm)


def _sentence(rng: random.Random) -> str:
    """Draw a command and fill its gaps: `{A|B}` is one of the words, `#` a digit."""
    words = rng.choice(COMMANDS).split()
    return " ".join(rng.choice(DIGITS if word == "#" else word.strip("{}").split("|")) for word in words)


def _write_chapter(root: Path, chapter: Chapter, texts: list[str], espeak: _Espeak) -> None:
    import soundfile

    folder = root / chapter.split / str(chapter.speaker_id) / str(chapter.number)
    folder.mkdir(parents=True)
    lines = []
    for index, text in enumerate(texts):
        name = f"{chapter.name}-{index:04d}"
        soundfile.write(folder / f"{name}.flac", espeak.say(text, chapter), SAMPLE_RATE_HZ, subtype="PCM_16")
        lines.append(f"{name} {text}\n")
    (folder / f"{chapter.name}.trans.txt").write_text("".join(lines), encoding="ascii", newline="\n")


class _Espeak:
    """Wrapper of the parts of espeak-ng's C interface (speak_lib.h) that are needed here."""

    SYNCHRONOUS, RATE, VOLUME, PITCH, UTF8 = 2, 1, 2, 3, 1
    _CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

    def __init__(self) -> None:
        import torch
        from torchaudio.transforms import Resample

        self._pieces: list[np.ndarray] = []
        self._callback = self._CALLBACK(self._receive)  # kept, because C holds no counted reference to it
        self._lib, data_path = _load_espeak()
        rate_hz = self._lib.espeak_Initialize(self.SYNCHRONOUS, 0, data_path.encode(), 0)
        if rate_hz <= 0:
            raise RuntimeError(f"espeak-ng failed to start with its data at {data_path}")
        # The order of a sum differs between threads and processors; in 64 bits, rounding to 16 hides the difference.
        self._resample = Resample(rate_hz, SAMPLE_RATE_HZ, dtype=torch.float64)
        self._lib.espeak_ng_SetRandSeed(ctypes.c_long(1))  # otherwise, breath noise is seeded with the time
        self._lib.espeak_SetSynthCallback(self._callback)
        self._lib.espeak_SetParameter(self.VOLUME, 70, 0)  # at 100 the loudest variants clip

    def say(self, text: str, chapter: Chapter) -> np.ndarray:
        """Synthesise `text`; return samples between -1 and 1 at SAMPLE_RATE_HZ."""
        import numpy as np
        import torch

        self._pieces.clear()
        self._check(self._lib.espeak_SetVoiceByName(chapter.voice.encode()), chapter.voice)
        self._lib.espeak_SetParameter(self.RATE, chapter.rate_wpm, 0)
        self._lib.espeak_SetParameter(self.PITCH, chapter.pitch, 0)
        spoken = text.lower().encode() + b"\0"
        size = ctypes.c_size_t(len(spoken))
        self._check(self._lib.espeak_Synth(spoken, size, 0, 0, 0, self.UTF8, None, None), text)
        self._check(self._lib.espeak_Synchronize(), text)
        samples = torch.from_numpy(np.concatenate(self._pieces)).double() / 2**15
        return self._resample(samples).numpy()

    def _receive(self, samples: ctypes._Pointer, count: int, _events: int) -> int:
        import numpy as np

        if samples and count > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0  # continue the synthesis

    @staticmethod
    def _check(status: int, what: str) -> None:
        if status != 0:
            raise RuntimeError(f"espeak-ng failed with status {status} on {what!r}")


def _load_espeak() -> tuple[ctypes.CDLL, str]:
    """Load the library; return it and the path of its data.

    The library is loaded from a copy: its output depends on all its earlier output, and a copy has a fresh state even
    if this process has already used espeak-ng.
    """
    try:
        import espeakng_loader
    except ImportError as error:
        raise InputError("The demo corpus needs espeak-ng: pip install 'w2v-lightning[demo]'") from error
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        return ctypes.CDLL(shutil.copy(espeakng_loader.get_library_path(), folder)), espeakng_loader.get_data_path()
