"""Columns of tables and datasets: which of them holds the path, the text, the speaker and the id."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from w2v_lightning.errors import InputError

# In order of preference. Names are compared in lower case.
PATH_COLUMNS = (
    *("path", "audio", "audio_filepath", "file", "file_name", "wav", "filename", "wav_filename"),
    *("audio_path", "audio_file", "filepath", "file_path", "wav_path", "audio_filename"),
)
TEXT_COLUMNS = ("text", "sentence", "transcript", "transcription", "normalized_text", "normalised_text", "raw_text")
SPEAKER_COLUMNS = ("speaker", "client_id", "speaker_id", "spk_id", "speaker_name")
ID_COLUMNS = ("id",)
SPLIT_COLUMNS = ("split",)


@dataclass(frozen=True)
class ColumnNames:
    """Columns that the user names; None: recognised by their usual names."""

    path: str | None = None
    text: str | None = None
    speaker: str | None = None

    def candidates(self) -> dict[str, tuple[str, ...]]:
        """Return the possible names, in order of preference, of path, text, speaker, id and split."""
        usual = {"path": PATH_COLUMNS, "text": TEXT_COLUMNS, "speaker": SPEAKER_COLUMNS, "id": ID_COLUMNS}
        usual["split"] = SPLIT_COLUMNS
        return usual | {key: (name,) for key, name in vars(self).items() if name is not None}

    def find(self, header: Iterable[str], path: Path, required: Iterable[str] = ("path", "text")) -> dict[str, str]:
        """Return the columns of `header` for path, text, speaker, id and split that are there.

        Args:
            header: names of all columns.
            path: path of the table, for messages.
            required: those that must be there.

        Raises:
            InputError: a required column, or one that the user names, is missing.
        """
        header = list(header)
        columns = {}
        for key, names in self.candidates().items():
            column = _first(names, header)
            named = getattr(self, key, None)
            if column is not None:
                columns[key] = column
            elif named is not None or key in required:
                remedy = f"Name it one of {', '.join(names)}, or give its name as --{key}_column."
                problem = f"no column for the {key}" if named is None else f"no column {named!r} (--{key}_column)"
                end = "" if named is not None else f" {remedy}"
                raise InputError(f"{path}: {problem}; its header is {', '.join(header) or 'empty'}.{end}")
        return columns

    def fit(self, header: Iterable[str]) -> bool:
        """Return whether there are columns for path and text."""
        header = list(header)
        return all(_first(self.candidates()[key], header) is not None for key in ("path", "text"))

    def given(self) -> Mapping[str, str]:
        """Return those that the user names, by the name of the option."""
        return {f"{key}_column": name for key, name in vars(self).items() if name is not None}


def _first(names: Iterable[str], header: list[str]) -> str | None:
    by_lower_case = {name.strip().lower(): name for name in reversed(header)}
    exact = (name for name in names if name in header)
    alike = (by_lower_case[name.lower()] for name in names if name.lower() in by_lower_case)
    return next(exact, None) or next(alike, None)
