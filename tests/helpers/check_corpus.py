"""Clean corpora for the tests of `check`, to which a test adds one fault."""

import json
from pathlib import Path

import numpy as np
import soundfile
from corpus import SAMPLE_RATE, spell

from w2v_lightning.__main__ import main

TEXTS = ["ABC DEF", "FED CAB", "BAD CAFE", "DEAF BEE", "FACE CAB", "BEAD FAD", "CAD EBB", "FEED ACE"]


class CorpusBuilder:
    """Writer of audio and manifests; utterances are clean unless a test adds a fault."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.rows: dict[str, list[dict]] = {}

    def add(
        self,
        utterance_id: str,
        text: str = "FACADE",
        *,
        waveform: np.ndarray | None = None,
        suffix: str = ".flac",
        manifest: str = "train",
        **keys,
    ) -> Path:
        """Write `text` as tones, or `waveform`, to a file and add it to a manifest; `keys` replace keys of its row."""
        waveform = spell(text.upper()) if waveform is None else waveform
        path = self.folder / manifest / f"{utterance_id}{suffix}"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, waveform, SAMPLE_RATE)
        row = {"id": utterance_id, "audio_filepath": str(path), "duration": len(waveform) / SAMPLE_RATE, "text": text}
        self.rows.setdefault(manifest, []).append({**row, "speaker": f"{manifest} speaker", **keys})
        return path

    def manifest(self, name: str = "train") -> str:
        path = self.folder / f"{name}.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in self.rows.get(name, [])))
        return str(path)

    def check(self, *options: str) -> tuple[int, dict]:
        """Run the command on the manifests written so far; return exit status and JSON report."""
        validation = ["--val", self.manifest("val")] if "val" in self.rows else []
        report = self.folder / "report.json"
        status = main(["check", self.manifest(), *validation, "--json", str(report), *options])
        return status, json.loads(report.read_text())

    def found(self, *options: str) -> tuple[int, dict[str, list[str]]]:
        """Run the command; return exit status and the ids of each finding that has any."""
        status, report = self.check(*options)
        return status, {f["name"]: [row["id"] for row in f["utterances"]] for f in report["findings"] if f["count"]}


def clean_corpus(folder: Path) -> CorpusBuilder:
    """Return a corpus of eight utterances without a fault."""
    builder = CorpusBuilder(folder)
    for number, text in enumerate(TEXTS):
        builder.add(f"clean-{number}", text)
    return builder
