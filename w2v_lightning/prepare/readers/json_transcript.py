"""Transcript in a JSON file of its own, as in webdataset: NAME.json beside NAME.flac, with a key such as `text`."""

import json

from w2v_lightning.prepare.columns import SPEAKER_COLUMNS, TEXT_COLUMNS


def fields_of_json(text: str) -> dict[str, str]:
    """Return text and speaker; empty if the file is not an object with a text, and so not a transcript."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(row, dict):
        return {}
    transcript = next((row[name] for name in TEXT_COLUMNS if isinstance(row.get(name), str)), None)
    if transcript is None:
        return {}
    speaker = next((row[name] for name in SPEAKER_COLUMNS if isinstance(row.get(name), str | int)), "")
    return {"text": " ".join(transcript.split()), "speaker": str(speaker)}
