"""Findings from a manifest alone, without opening any audio: pure functions from a Corpus."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

import numpy as np

from w2v_lightning.check.alphabet import Alphabet
from w2v_lightning.data import checks
from w2v_lightning.data.batch import InputSpec
from w2v_lightning.data.manifest import Manifest
from w2v_lightning.reporting.units import printable
from w2v_lightning.text.vocabulary import Vocabulary

OUTLIER_DEVIATIONS = 6.0  # in robust standard deviations; 583 utterances of LibriSpeech stay below 4
MIN_RATE, MAX_RATE = 1.0, 30.0  # characters per second; the same utterances have 7 to 20
MAD_TO_STANDARD_DEVIATION = 1.4826  # for a normal distribution


class Level(StrEnum):
    """Severity of a finding."""

    ERROR = "error"  # would hurt training, or stop it
    WARNING = "warning"  # worth a look


@dataclass(frozen=True)
class Finding:
    """Kind of fault, with the utterances that have it."""

    name: str
    level: Level
    remedy: str
    details: dict[int, str] = field(default_factory=dict)  # what is wrong, by position in the corpus; worst first

    def __len__(self) -> int:
        return len(self.details)


@dataclass(frozen=True)
class Corpus:
    """Utterances that are checked together; N is their number."""

    manifest: Manifest
    is_validation_N: np.ndarray
    spec: InputSpec

    @classmethod
    def join(cls, train: Sequence[Manifest], validation: Sequence[Manifest], spec: InputSpec) -> "Corpus":
        """Join manifests; unlike `Manifest.concatenate`, accept repeated ids, because the check reports them."""
        whole = Manifest.join([*train, *validation])
        return cls(whole, np.arange(len(whole)) >= sum(map(len, train)), spec)

    def __len__(self) -> int:
        return len(self.manifest)

    @cached_property
    def alphabet(self) -> Alphabet:
        """Characters that a vocabulary built from the training texts (of all, if there are no others) would have."""
        texts = self.manifest.texts[: len(self) - int(self.is_validation_N.sum())]  # training comes first
        return Alphabet(texts or self.manifest.texts, self.spec.vocabulary.rules)

    @cached_property
    def characters_per_second(self) -> np.ndarray:
        """Characters per second of each utterance, after normalisation; (N,)."""
        lengths = [len(self.spec.vocabulary.normalise(text)) for text in self.manifest.texts]
        return np.array(lengths) / self.manifest.durations_s_N

    @cached_property
    def unknown_characters(self) -> dict[int, set[str]]:
        """Characters without a token, by position; see `checks.unknown_characters`."""
        return checks.unknown_characters(self.manifest, self.spec)

    def unknown_counts(self) -> Counter[str]:
        """Return how often each character without a token occurs."""
        vocabulary, texts = self.spec.vocabulary, self.manifest.texts
        return Counter(
            piece
            for i, unknown in self.unknown_characters.items()
            for piece in vocabulary.pieces(vocabulary.normalise(texts[i]))
            if piece in unknown
        )


def in_manifest(corpus: Corpus, max_seconds: float) -> list[Finding]:
    """Return every finding that needs no audio, also those without utterances."""
    return [
        empty_text(corpus),
        out_of_vocabulary(corpus),
        wrong_case(corpus),
        infeasible(corpus),
        too_short(corpus),
        too_long(corpus, max_seconds),
        duplicated_ids(corpus),
        ids_in_both(corpus),
        speakers_in_both(corpus),
        rate_outliers(corpus),
    ]


def empty_text(corpus: Corpus) -> Finding:
    remedy = "Transcribe them or leave them out (data.skip_unusable=true)."
    return Finding("empty text", Level.ERROR, remedy, checks.empty_text(corpus.manifest, corpus.spec))


def out_of_vocabulary(corpus: Corpus) -> Finding:
    details = {
        i: "no token for " + printable(" ".join(sorted(unknown))) for i, unknown in corpus.unknown_characters.items()
    }
    remedy = "Spell out digits and symbols, or train with a vocabulary that has these characters."
    return Finding("out of vocabulary", Level.ERROR, remedy, details)


def wrong_case(corpus: Corpus) -> Finding:
    """Return utterances with letters that the vocabulary has in the other case only.

    Nothing is lost here, because `Vocabulary.normalise` folds case. Without case folding, every such letter becomes
    ``<unk>``, the classic cause of a WER that stays at 1.0.
    """
    wrong = {c for c in set().union(*corpus.manifest.texts) if _is_known_in_other_case(c, corpus.spec.vocabulary)}
    details = {
        i: "letters " + " ".join(sorted(letters)[:10])
        for i, text in enumerate(corpus.manifest.texts)
        if (letters := wrong.intersection(text))
    }
    remedy = "None needed here: case is folded. Without that, training would see <unk> and WER would stay at 1.0."
    return Finding("letter case differs from the vocabulary", Level.WARNING, remedy, details)


def infeasible(corpus: Corpus) -> Finding:
    remedy = "Correct the text or the segment: CTC has no alignment, so their loss is infinite."
    details = checks.infeasible(corpus.manifest, corpus.spec)
    return Finding("more labels than frames", Level.ERROR, remedy, details)


def too_short(corpus: Corpus) -> Finding:
    remedy = f"Leave them out: the model needs {corpus.spec.min_samples} samples for one frame."
    return Finding("too short", Level.ERROR, remedy, checks.too_short(corpus.manifest, corpus.spec))


def too_long(corpus: Corpus, max_seconds: float) -> Finding:
    durations_s_N = corpus.manifest.durations_s_N
    longest_first = np.argsort(-durations_s_N, kind="stable")
    details = {int(i): f"{durations_s_N[i]:.1f} s" for i in longest_first if durations_s_N[i] > max_seconds}
    remedy = f"Cut them, or leave them out (data.max_seconds={max_seconds:g}): they set the memory need of a step."
    return Finding(f"longer than {max_seconds:g} s", Level.WARNING, remedy, details)


def duplicated_ids(corpus: Corpus) -> Finding:
    """Return utterances whose id occurs again within the training manifests, or within the validation manifests."""
    groups = positions_by_key(zip(corpus.manifest.ids, corpus.is_validation_N.tolist(), strict=True))
    details = {i: f"{len(group)} times" for group in groups if len(group) > 1 for i in group}
    remedy = "Give each utterance a unique id: masks are drawn and results are named by id."
    return Finding("duplicated id", Level.ERROR, remedy, details)


def ids_in_both(corpus: Corpus) -> Finding:
    remedy = "Make sure that no validation utterance is trained on, or WER is too good."
    details = _also_in_training(corpus, corpus.manifest.ids, "")
    return Finding("same id in training and validation", Level.WARNING, remedy, details)


def speakers_in_both(corpus: Corpus) -> Finding:
    remedy = "Keep each speaker in one of the two, or WER says little about new speakers."
    details = _also_in_training(corpus, corpus.manifest.speakers, "speaker {}")
    return Finding("same speaker in training and validation", Level.WARNING, remedy, details)


def rate_outliers(corpus: Corpus) -> Finding:
    """Return utterances whose rate is far from the corpus's median, or beyond what anybody speaks.

    Often their text belongs to other audio.
    """
    rates_N = corpus.characters_per_second
    spoken = rates_N > 0
    median = float(np.median(rates_N[spoken])) if spoken.any() else 0.0
    deviation = MAD_TO_STANDARD_DEVIATION * float(np.median(np.abs(rates_N[spoken] - median))) if spoken.any() else 0.0
    deviation = max(deviation, 0.1 * median)  # otherwise 0 if all rates are equal
    distance_N = np.abs(rates_N - median) / (deviation or 1.0)
    is_outlier_N = (distance_N > OUTLIER_DEVIATIONS) | (rates_N > MAX_RATE) | (rates_N < MIN_RATE)
    worst_first = sorted(np.flatnonzero(spoken & is_outlier_N).tolist(), key=lambda i: -distance_N[i])
    details = {i: f"{rates_N[i]:.1f} characters/s, the median is {median:.1f}" for i in worst_first}
    remedy = "Listen to them: often the text belongs to other audio, or a part is missing."
    return Finding("characters per second", Level.WARNING, remedy, details)


def positions_by_key(keys: Iterable[Hashable]) -> list[list[int]]:
    """Group the positions of equal keys; None equals nothing and is left out."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        if key is not None:
            groups[key].append(i)
    return list(groups.values())


def _also_in_training(corpus: Corpus, names: list[str], detail: str) -> dict[int, str]:
    """Return validation utterances whose (non-empty) name occurs in training."""
    in_training = {name for name, validation in zip(names, corpus.is_validation_N, strict=True) if not validation}
    shared = [i for i in np.flatnonzero(corpus.is_validation_N).tolist() if names[i] and names[i] in in_training]
    return {i: detail.format(names[i]) for i in shared}


def _is_known_in_other_case(character: str, vocabulary: Vocabulary) -> bool:
    has_case, unknown = character.upper() != character.lower(), vocabulary.unknown_characters
    return has_case and bool(unknown(character)) and not unknown(vocabulary.normalise(character))
