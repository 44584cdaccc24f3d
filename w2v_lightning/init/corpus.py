"""Splits of a prepared corpus, told apart by their names."""

from dataclasses import dataclass
from pathlib import Path

from w2v_lightning.data.manifest import Manifest
from w2v_lightning.errors import InputError
from w2v_lightning.prepare import splits

SUFFIXES = (".jsonl", ".jsonl.gz")
ALL = "manifest"  # all splits together
REJECTED = "rejected"  # prepare's list of what it left out


@dataclass(frozen=True)
class PreparedCorpus:
    """Splits in a folder that `prepare` has written.

    Args:
        folder: the folder, absolute.
        train, validation, test: names of the splits of each kind.
        training: the utterances to train on.
    """

    folder: Path
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    training: Manifest

    @classmethod
    def load(cls, folder: Path) -> "PreparedCorpus":
        """Read the manifests in a folder.

        Raises:
            InputError: the folder has no manifest, or none to train on or to validate with.
        """
        names = _split_names(folder)
        test = tuple(name for name in names if splits.TEST.search(name))
        validation = tuple(name for name in names if splits.VALIDATION.search(name) and name not in test)
        train = tuple(name for name in names if name not in (*test, *validation))
        if not train:
            raise InputError(f"--data {folder}: none of {', '.join(names)} is named like a training split.")
        if not validation:
            raise InputError(
                f"--data {folder} has no validation split, only {', '.join(names)}: run `prepare` again with"
                " --validation 5% and another --out."
            )
        paths = [_path_of(folder, name) for name in train]
        return cls(folder.resolve(), train, validation, test, Manifest.join([Manifest.load(path) for path in paths]))

    @property
    def hours(self) -> float:
        """Hours of training audio."""
        return float(self.training.durations_s_N.sum()) / 3600

    @property
    def longest_s(self) -> float:
        """Duration of the longest training utterance in seconds."""
        return float(self.training.durations_s_N.max())

    def __str__(self) -> str:
        speakers = len({speaker for speaker in self.training.speakers if speaker})
        known = f" of {speakers:,} speakers" if speakers else ""
        return f"{len(self.training):,} utterances{known}, {self.hours:.2f} h, in {', '.join(self.train)}"


def _split_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise InputError(f"--data {folder} is not a folder: name the one that `prepare --out` has written.")
    names = {path.name.removesuffix(suffix) for suffix in SUFFIXES for path in folder.glob(f"*{suffix}")} - {REJECTED}
    if not names:
        raise InputError(f"--data {folder} has no manifest ({', '.join(SUFFIXES)}): run `prepare` first.")
    return sorted(names - {ALL} or {ALL})


def _path_of(folder: Path, name: str) -> Path:
    return next(path for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").exists())
