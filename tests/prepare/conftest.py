import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from w2v_lightning.data.decode import as_float, decode
from w2v_lightning.data.manifest import Manifest
from w2v_lightning.prepare.command import main


@pytest.fixture
def prepare(tmp_path) -> Callable[..., Path]:
    """Function that runs `prepare SOURCE... OPTION...` and returns the output folder."""

    def run(*args: object, out: str = "out") -> Path:
        options = ["--out", str(tmp_path / out), "--workers", "2", "--max-rejected", "100"]
        assert main([*map(str, args), *options]) == 0
        return tmp_path / out

    return run


@pytest.fixture
def rows() -> Callable[[Path], list[dict]]:
    """Function that returns the objects of a JSON lines file."""
    return lambda path: [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def audio_of() -> Callable[[Path], dict[str, np.ndarray]]:
    """Function that returns each utterance's waveform as training reads it: by offset and length, decoded; float32."""

    def read(manifest: Path) -> dict[str, np.ndarray]:
        loaded = Manifest.load(manifest)
        waveforms = {}
        for i, utterance_id in enumerate(loaded.ids):
            ref = loaded.audio(i)
            data = Path(ref.url).read_bytes()
            end = ref.byte_offset + ref.num_bytes if ref.num_bytes else len(data)
            waveforms[utterance_id] = as_float(decode(data[ref.byte_offset : end], ref))
        return waveforms

    return read
