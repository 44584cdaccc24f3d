"""What would hurt training is found before it starts: each check names the utterances and the remedy."""

import logging
from collections import Counter

import numpy as np

from w2v_lightning.data.batch import SAMPLE_RATE, InputSpec
from w2v_lightning.data.librispeech import listed
from w2v_lightning.data.manifest import Manifest
from w2v_lightning.errors import InputError
from w2v_lightning.text import count_repeats

log = logging.getLogger(__name__)


def usable(
    manifest: Manifest,
    spec: InputSpec,
    *,
    split: str,
    max_seconds: float | None = None,
    skip_unusable: bool = False,
) -> Manifest:
    """The utterances that this model can be trained and scored on.

    Those longer than `max_seconds` are left out, as asked, and counted in the log.

    Raises:
        InputError: utterances have unknown characters, no text, are too short for the model, or have more labels than
            frames, and `skip_unusable` is off; or nothing is left.
    """
    findings = {
        "have characters outside the vocabulary": _unknown_characters(manifest, spec),
        "have an empty transcript": _empty_text(manifest),
        f"are too short for the model (under {spec.min_samples} samples)": _too_short(manifest, spec),
        "have more labels than the model has frames for": _infeasible(manifest, spec),
    }
    bad = _report(findings, split, skip_unusable)
    too_long = {i for i, s in enumerate(manifest.durations_s_N) if max_seconds is not None and s > max_seconds}
    if too_long:
        log.info("%s: %d utterances over data.max_seconds=%g are left out.", split, len(too_long), max_seconds)
    if not bad and not too_long:
        return manifest
    kept = manifest.select(~np.isin(np.arange(len(manifest)), list(bad | too_long)))
    if len(kept) == 0:
        raise InputError(f"{split}: none of its {len(manifest)} utterances is left to use (see the log above).")
    return kept


def _report(findings: dict[str, dict[int, str]], split: str, skip: bool) -> set[int]:
    messages = [
        f"{len(found)} utterances {what}: {listed(list(found.values()))}" for what, found in findings.items() if found
    ]
    if messages and not skip:
        raise InputError(
            f"{split}: " + "; ".join(messages) + ". Correct them, or set data.skip_unusable=true to leave them out."
        )
    for message in messages:
        log.warning("%s: %s. They are left out (data.skip_unusable=true).", split, message)
    return set().union(*findings.values())


def _unknown_characters(manifest: Manifest, spec: InputSpec) -> dict[int, str]:
    vocabulary = spec.vocabulary
    unknown = {
        i: characters
        for i, text in enumerate(manifest.texts)
        if (characters := vocabulary.unknown_characters(vocabulary.normalise(text)))
    }
    counts = Counter(character for characters in unknown.values() for character in characters)
    if counts:
        log.warning("Characters without a token: %s.", ", ".join(f"{c!r} (in {n})" for c, n in counts.most_common(20)))
    return {i: f"{manifest.ids[i]} ({' '.join(sorted(characters))})" for i, characters in unknown.items()}


def _empty_text(manifest: Manifest) -> dict[int, str]:
    return {i: manifest.ids[i] for i, text in enumerate(manifest.texts) if not text.strip()}


def _num_samples(manifest: Manifest) -> np.ndarray:
    return np.rint(manifest.durations_s_N * SAMPLE_RATE).astype(np.int64)


def _too_short(manifest: Manifest, spec: InputSpec) -> dict[int, str]:
    short = np.flatnonzero(_num_samples(manifest) < spec.min_samples)
    return {int(i): f"{manifest.ids[i]} ({manifest.durations_s_N[i] * 1000:.0f} ms)" for i in short}


def _infeasible(manifest: Manifest, spec: InputSpec) -> dict[int, str]:
    """CTC needs a frame for each label and one more between equal neighbours."""
    num_frames_N = spec.num_frames(_num_samples(manifest))
    found = {}
    for i, (text, num_frames) in enumerate(zip(manifest.texts, num_frames_N, strict=True)):
        characters = spec.vocabulary.normalise(text)
        needed = len(characters) + count_repeats(characters)
        if 0 < num_frames < needed:
            found[i] = f"{manifest.ids[i]} ({needed} needed, {num_frames} frames)"
    return found
