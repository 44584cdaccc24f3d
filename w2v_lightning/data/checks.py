"""Checks of utterances and trainer options before training; each names the utterances and the remedy."""

import logging
from collections import Counter
from collections.abc import Iterable

import numpy as np
from lightning.pytorch import Trainer

from w2v_lightning.data.batch import InputSpec
from w2v_lightning.data.manifest import Manifest
from w2v_lightning.errors import InputError, listed
from w2v_lightning.reporting.units import printable
from w2v_lightning.text.case import looks_turkic
from w2v_lightning.text.characters import depends_on_neighbours, described
from w2v_lightning.text.vocabulary import count_repeats

log = logging.getLogger(__name__)


def usable(
    manifest: Manifest,
    spec: InputSpec,
    *,
    split: str,
    max_seconds: float | None = None,
    skip_unusable: bool = False,
) -> Manifest:
    """Return the utterances that this model can be trained and evaluated on.

    Utterances longer than `max_seconds` are left out and counted in the log.

    Raises:
        InputError: utterances are too short for the model or, if it is trained on text, have unknown characters, no
            text, or more labels than frames, and `skip_unusable` is off; or no utterance is usable.
    """
    findings = {f"are too short for the model (under {spec.min_samples} samples)": too_short(manifest, spec)}
    if spec.needs_text:
        findings |= _text_findings(manifest, spec)
    bad = _report(manifest, findings, split, skip_unusable)
    too_long = {i for i, s in enumerate(manifest.durations_s_N) if max_seconds is not None and s > max_seconds}
    if too_long:
        log.info("%s: %d utterances over data.max_seconds=%g are left out.", split, len(too_long), max_seconds)
    if not bad and not too_long:
        return manifest
    kept = manifest.select(~np.isin(np.arange(len(manifest)), list(bad | too_long)))
    if len(kept) == 0:
        raise InputError(f"{split}: none of its {len(manifest)} utterances can be used (see the log above).")
    return kept


def warn_of_letter_case(texts: Iterable[str], spec: InputSpec) -> None:
    """Log a warning if the texts look like Turkish, and nothing says so."""
    rules, is_kept = spec.vocabulary.rules, spec.vocabulary.case == "keep"
    if spec.needs_text and not is_kept and (rules is None or rules.language is None) and looks_turkic(texts):
        log.warning(
            "The transcripts have the dotless i of Turkish, but letters change case as in English: I and i are one"
            " letter. Set data.text.language=tr."
        )


def check_trainer(trainer: Trainer, num_batches: int) -> None:
    """Check the trainer's options against the plan, whose epoch has `num_batches` micro-batches on this device.

    Raises:
        InputError: they do not fit, and Lightning would fail.
    """
    overfit_batches = trainer.overfit_batches  # type: ignore[attr-defined]  # Lightning sets it without declaring it
    if overfit_batches:
        raise InputError(
            f"trainer.overfit_batches is {overfit_batches}, which is unsupported: each epoch has different batches. To"
            " overfit a few utterances, name a manifest of only these in data.train_splits and data.val_splits."
        )
    limit, interval = trainer.limit_train_batches, trainer.val_check_interval
    num_batches = min(num_batches, limit) if isinstance(limit, int) else int(num_batches * limit)
    is_by_epoch = trainer.check_val_every_n_epoch is not None and trainer.limit_val_batches > 0
    if is_by_epoch and isinstance(interval, int) and 0 < num_batches < interval:
        raise InputError(
            f"trainer.val_check_interval is {interval} micro-batches, but an epoch has {num_batches} of them. Lower it,"
            " give a share of an epoch such as 0.5, or count across epochs with trainer.check_val_every_n_epoch=null."
        )


def _text_findings(manifest: Manifest, spec: InputSpec) -> dict[str, dict[int, str]]:
    unknown = unknown_characters(manifest, spec)
    if unknown:
        counts = Counter(character for characters in unknown.values() for character in characters).most_common(20)
        examples = ", ".join(f"{_shown(piece)} (in {n})" for piece, n in counts)
        log.warning("Characters without a token: %s. For another alphabet: model.vocabulary=build.", examples)
    return {
        "have characters outside the vocabulary": {i: printable(" ".join(sorted(unknown[i]))) for i in unknown},
        "have an empty transcript": empty_text(manifest, spec),
        "have more labels than the model has frames for": infeasible(manifest, spec),
    }


def _shown(piece: str) -> str:
    """Return a character as a message shows it: with its name, where it may look like another; or a phoneme."""
    return repr(piece) if piece.isascii() or len(piece) > 1 else described(piece)


def _report(manifest: Manifest, findings: dict[str, dict[int, str]], split: str, skip: bool) -> set[int]:
    messages = [
        f"{len(details)} utterances {problem}: {listed([_describe(manifest, i, d) for i, d in details.items()])}"
        for problem, details in findings.items()
        if details
    ]
    if messages and not skip:
        raise InputError(
            f"{split}: " + "; ".join(messages) + ". Correct them, or set data.skip_unusable=true to leave them out."
        )
    for message in messages:
        log.warning("%s: %s. They are left out (data.skip_unusable=true).", split, message)
    return set().union(*findings.values())


def _describe(manifest: Manifest, i: int, detail: str) -> str:
    return f"{manifest.ids[i]} ({detail})" if detail else manifest.ids[i]


# ---- the checks: each returns details by utterance position, the worst first ----------------------------------------


def unknown_characters(manifest: Manifest, spec: InputSpec) -> dict[int, set[str]]:
    """Return, per utterance, the characters (or phonemes) without a token after normalisation."""
    vocabulary = spec.vocabulary
    written = set().union(*manifest.texts)
    alphabet = map(vocabulary.normalise, written)
    is_known = not any(map(vocabulary.unknown_characters, [vocabulary.space, *alphabet]))
    if is_known and not any(map(depends_on_neighbours, written)):  # the common case, and a quick check
        return {}
    unknown = {
        i: characters
        for i, text in enumerate(manifest.texts)
        if (characters := vocabulary.unknown_characters(vocabulary.normalise(text)))
    }
    return dict(sorted(unknown.items(), key=lambda item: -len(item[1])))


def empty_text(manifest: Manifest, spec: InputSpec) -> dict[int, str]:
    """Return the utterances with an empty transcript, or one of invisible or dropped characters alone."""
    normalise = spec.vocabulary.normalise
    return {i: printable(text).strip() for i, text in enumerate(manifest.texts) if not normalise(text)}


def too_short(manifest: Manifest, spec: InputSpec) -> dict[int, str]:
    """Return the utterances whose audio is too short for one frame of the model."""
    short = np.flatnonzero(_num_samples(manifest, spec) < spec.min_samples)
    by_duration = short[np.argsort(manifest.durations_s_N[short], kind="stable")]
    return {int(i): f"{manifest.durations_s_N[i] * 1000:.0f} ms" for i in by_duration}


def infeasible(manifest: Manifest, spec: InputSpec) -> dict[int, str]:
    """Return the utterances with too few frames: CTC needs one per label, and one more between equal neighbours."""
    num_frames_N = spec.num_frames(_num_samples(manifest, spec))
    needed_and_given = {}
    replaces = bool(spec.vocabulary.rules and spec.vocabulary.rules.replace)
    for i, (text, num_frames) in enumerate(zip(manifest.texts, num_frames_N, strict=True)):
        # Twice as many frames as labels always suffice; only replacements make ASCII text longer.
        if num_frames == 0 or (text.isascii() and num_frames >= 2 * len(text) and not replaces):
            continue
        labels = spec.vocabulary.pieces(spec.vocabulary.normalise(text))
        needed = len(labels) + count_repeats(labels)
        if num_frames < needed:
            needed_and_given[i] = needed, num_frames
    worst_first = sorted(needed_and_given.items(), key=lambda item: item[1][1] / item[1][0])
    return {i: f"{needed} needed, {num_frames} frames" for i, (needed, num_frames) in worst_first}


def _num_samples(manifest: Manifest, spec: InputSpec) -> np.ndarray:
    return np.rint(manifest.durations_s_N * spec.sample_rate).astype(np.int64)
