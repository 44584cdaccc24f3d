"""A corpus for tests in the LibriSpeech layout: every letter is a tone, so that a tiny model can learn to read it."""

from pathlib import Path

import numpy as np
import soundfile

LETTER_S = 0.08
SAMPLE_RATE = 16_000


def spell(text: str, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """`text` as tones, one per letter, a space is silence; float32."""
    t = np.arange(int(LETTER_S * sample_rate)) / sample_rate
    envelope = np.hanning(len(t))
    tones = [np.zeros(len(t)) if c == " " else envelope * np.sin(2 * np.pi * _frequency_hz(c) * t) for c in text]
    return (0.5 * np.concatenate(tones)).astype(np.float32)


def _frequency_hz(letter: str) -> float:
    return 300.0 * 1.1 ** (ord(letter) - ord("A"))


def random_texts(number: int, seed: int = 0, letters: str = "ABCDEF", longest: int = 8) -> list[str]:
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list(letters), rng.integers(1, 4))) for _ in range(50)]
    return [" ".join(rng.choice(words, rng.integers(1, longest))) for _ in range(number)]


def write_split(root: Path, split: str, texts: list[str], speaker: str = "19") -> Path:
    """Write ROOT/SPLIT/SPEAKER/1/... with one utterance per text; returns the chapter's folder."""
    chapter = root / split / speaker / "1"
    chapter.mkdir(parents=True)
    lines = []
    for number, text in enumerate(texts):
        utterance_id = f"{speaker}-1-{number:04}"
        soundfile.write(chapter / f"{utterance_id}.flac", spell(text), SAMPLE_RATE)
        lines.append(f"{utterance_id} {text}\n")
    (chapter / f"{speaker}-1.trans.txt").write_text("".join(lines))
    return chapter
