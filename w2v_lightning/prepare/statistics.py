"""Statistics for stats.json, kept as sums, so that those of the parts add up to those of the corpus."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from w2v_lightning.prepare.convert import Audio


@dataclass
class Statistics:
    """Counts over a set of utterances."""

    utterances: int = 0
    seconds: float = 0.0
    num_bytes: int = 0
    min_duration_s: float = math.inf
    max_duration_s: float = 0.0
    alphabet: Counter[str] = field(default_factory=Counter)
    sample_rates: Counter[str] = field(default_factory=Counter)
    speakers: set[str] = field(default_factory=set)

    def add(self, text: str, speaker: str, audio: Audio) -> None:
        """Count one utterance."""
        self.utterances += 1
        self.seconds += audio.duration_s
        self.num_bytes += audio.num_bytes
        self.min_duration_s = min(self.min_duration_s, audio.duration_s)
        self.max_duration_s = max(self.max_duration_s, audio.duration_s)
        self.alphabet.update(text)
        self.sample_rates[str(audio.sample_rate)] += 1
        if speaker:
            self.speakers.add(speaker)

    def merge(self, other: "Statistics") -> None:
        """Add the counts of `other`."""
        self.utterances += other.utterances
        self.seconds += other.seconds
        self.num_bytes += other.num_bytes
        self.min_duration_s = min(self.min_duration_s, other.min_duration_s)
        self.max_duration_s = max(self.max_duration_s, other.max_duration_s)
        self.alphabet.update(other.alphabet)
        self.sample_rates.update(other.sample_rates)
        self.speakers |= other.speakers

    def as_json(self) -> dict[str, Any]:
        """Return the counts as JSON values, for `from_json`."""
        return vars(self) | {"speakers": sorted(self.speakers)}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "Statistics":
        """Return the counts that `as_json` has written."""
        counters = {key: Counter(row[key]) for key in ("alphabet", "sample_rates")}
        return cls(**(row | counters | {"speakers": set(row["speakers"])}))

    def summary(self) -> dict[str, Any]:
        """Return the values of stats.json."""
        return {
            "utterances": self.utterances,
            "hours": round(self.seconds / 3600, 6),
            "bytes": self.num_bytes,
            "min_duration_s": self.min_duration_s,
            "mean_duration_s": round(self.seconds / self.utterances, 6),
            "max_duration_s": self.max_duration_s,
            "characters": self.alphabet.total(),
            "alphabet": dict(sorted(self.alphabet.items())),
            "speakers": len(self.speakers),
            "sample_rates": dict(sorted(self.sample_rates.items(), key=lambda item: int(item[0]))),
        }
