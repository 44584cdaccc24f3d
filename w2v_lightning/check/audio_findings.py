"""Findings from the measurements of the audio."""

from collections.abc import Sequence

import numpy as np

from w2v_lightning.check.findings import Corpus, Finding, Level, positions_by_key
from w2v_lightning.check.measure import SILENCE_DBFS, Measurement

MAX_SILENT_SHARE = 0.9  # of 20 ms windows; 583 utterances of LibriSpeech have at most 0.31
MAX_CLIPPED_SHARE = 0.001  # of samples; a single peak at full scale is not a fault


def in_audio(corpus: Corpus, measurements: Sequence[Measurement], decode: bool) -> list[Finding]:
    """Return every finding that needs the audio, also those without utterances; clipping and silence if decoded."""
    findings = [unreadable(measurements), wrong_duration(corpus, measurements), *duplicated_audio(corpus, measurements)]
    return findings + ([clipped(measurements), silent(measurements)] if decode else [])


def unreadable(measurements: Sequence[Measurement]) -> Finding:
    details = {i: m.problem for i, m in enumerate(measurements) if m.problem}
    return Finding("unreadable audio", Level.ERROR, "Replace these files, or leave the utterances out.", details)


def wrong_duration(corpus: Corpus, measurements: Sequence[Measurement]) -> Finding:
    """Return utterances whose duration is off by more than rounding explains (10 ms and 0.1 %)."""
    stated_s_N = corpus.manifest.durations_s_N
    measured_s_N = np.array([m.duration_s for m in measurements])
    off_s_N = np.abs(measured_s_N - stated_s_N)
    is_off_N = (off_s_N > 0.010 + 1e-9) & (off_s_N > 0.001 * stated_s_N)  # false for NaN
    worst_first = sorted(np.flatnonzero(is_off_N).tolist(), key=lambda i: -off_s_N[i])
    details = {i: f"{stated_s_N[i]:.3f} s in the manifest, {measured_s_N[i]:.3f} s of audio" for i in worst_first}
    remedy = "Make the manifest again with prepare: batches are planned from its durations."
    return Finding("wrong duration", Level.ERROR, remedy, details)


def duplicated_audio(corpus: Corpus, measurements: Sequence[Measurement]) -> list[Finding]:
    """Return utterances with equal audio: in training and validation, with different texts, or simply repeated."""
    leaked: dict[int, str] = {}
    contradicted: dict[int, str] = {}
    repeated: dict[int, str] = {}
    for group in positions_by_key(m.content for m in measurements):
        first, *repetitions = group  # if one of them is in training, it is the first
        for i in repetitions:
            detail = f"the same {_compared(measurements[i])} as {corpus.manifest.ids[first]}"
            if corpus.is_validation_N[i] and not corpus.is_validation_N[first]:
                leaked[i] = detail
            elif _text(corpus, i) != _text(corpus, first):
                contradicted[i] = detail
            else:
                repeated[i] = detail
    error, warning = Level.ERROR, Level.WARNING
    return [
        Finding(
            "validation audio in training",
            error,
            "Remove it from one of the two, or WER is too good.",
            leaked,
        ),
        Finding("same audio with different text", error, "Find out which text is right.", contradicted),
        Finding("duplicated audio", warning, "Remove all but one, or they count more than others.", repeated),
    ]


def _compared(measurement: Measurement) -> str:
    assert measurement.content is not None, "positions_by_key leaves out None"
    return measurement.content[0]


def _text(corpus: Corpus, i: int) -> str:
    return corpus.spec.vocabulary.normalise(corpus.manifest.texts[i])


def clipped(measurements: Sequence[Measurement]) -> Finding:
    shares = {i: m.clipped_share for i, m in enumerate(measurements) if m.clipped_share > MAX_CLIPPED_SHARE}
    worst_first = sorted(shares, key=lambda i: -shares[i])
    details = {i: f"{100 * shares[i]:.2f} % of samples at full scale" for i in worst_first}
    return Finding("clipping", Level.WARNING, "Record or convert again with less gain.", details)


def silent(measurements: Sequence[Measurement]) -> Finding:
    quiet = [i for i, m in enumerate(measurements) if m.rms_dbfs < SILENCE_DBFS or m.silent_share > MAX_SILENT_SHARE]
    quietest_first = sorted(quiet, key=lambda i: measurements[i].rms_dbfs)
    details = {
        i: f"{measurements[i].rms_dbfs:.0f} dBFS, {100 * measurements[i].silent_share:.0f} % of it silent"
        for i in quietest_first
    }
    remedy = "Listen to them: speech is missing or too quiet. Leave them out, or trim the silence."
    return Finding("silence", Level.WARNING, remedy, details)
