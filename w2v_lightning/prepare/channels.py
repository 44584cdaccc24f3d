"""Choice of the channel of each recording, or one utterance for each of its channels."""

import io
from collections.abc import Iterable, Iterator
from dataclasses import replace

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.opening import opened
from w2v_lightning.errors import InputError
from w2v_lightning.prepare.convert import packed_bytes
from w2v_lightning.prepare.utterance import Item, Rejected, Utterance


def by_channel(items: Iterable[Item], channel: str) -> Iterator[Item]:
    """Return the items with the channel of `prepare --channel`; a channel that the source chose is kept.

    Args:
        items: utterances, and those that are rejected already.
        channel: a number, counted from 0; "mix", the mean of all; "each", one utterance per channel with its number
            at the end of the id.
    """
    for item in items:
        if channel == "mix" or isinstance(item, Rejected) or _is_chosen(item):
            yield item
        elif channel == "each":
            yield from _each(item)
        else:
            yield _with_channel(item, int(channel))


def _is_chosen(utterance: Utterance) -> bool:
    return isinstance(utterance.audio, AudioRef) and utterance.audio.channel is not None


def _each(utterance: Utterance) -> Iterator[Item]:
    num_channels = num_channels_of(utterance.audio)
    if num_channels < 2:
        yield utterance
    else:
        for i in range(num_channels):
            yield replace(_with_channel(utterance, i), id=f"{utterance.id}-{i}")


def _with_channel(utterance: Utterance, channel: int) -> Utterance:
    if isinstance(utterance.audio, bytes):
        return replace(utterance, packed_channel=channel)
    return replace(utterance, audio=replace(utterance.audio, channel=channel))


def num_channels_of(audio: AudioRef | bytes) -> int:
    """Return the number of channels; 1 for audio that cannot be read, which prepare_audio rejects with the reason."""
    try:
        data = audio if isinstance(audio, bytes) else packed_bytes(audio)
        source = io.BytesIO(data) if data is not None else audio.url  # type: ignore[union-attr]  # None for AudioRef only
        with opened(source, "") as sound:
            return int(sound.channels)
    except (InputError, OSError):
        return 1
