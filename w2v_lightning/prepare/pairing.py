"""Matching of the audio files and transcripts of one directory, in any order.

Transcripts are lines `ID TRANSCRIPT` of a .trans.txt file for ID.flac, as in LibriSpeech; or NAME.txt, NAME.lab or
NAME.json (as in webdataset, with a key such as `text`) for NAME.wav.
"""

import re
from collections.abc import Iterator
from pathlib import PurePath

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.prepare.hashes import HashSet
from w2v_lightning.prepare.readers import timit
from w2v_lightning.prepare.readers.json_transcript import fields_of_json
from w2v_lightning.prepare.splits import innermost
from w2v_lightning.prepare.utterance import Item, Rejected, Utterance

TRANSCRIPT_SUFFIXES = (".txt", ".lab", ".json")
ALIGNMENT = re.compile(r"([\d.]+\s+[\d.]+\s+\S.*\n){2,}")  # of HTK: start, end and phoneme in each line


class Pairing:
    """Audio files and transcripts of one directory; keeps only those that have no partner yet.

    Args:
        directory: path that starts with the corpus's own folder: LibriSpeech/dev-clean/84/121123 or
            dev-clean/84/121123.
        source: name of the directory for rejected utterances.
        matched: names of the transcript files, in any directory, whose audio was there; added to.
    """

    def __init__(self, directory: PurePath, source: str, matched: HashSet) -> None:
        self._directory = directory
        self._source = source
        self._matched = matched
        self._audio_of_stem: dict[str, AudioRef | bytes] = {}
        self._transcript_of_stem: dict[str, dict[str, str]] = {}  # the fields of Utterance that a transcript decides
        self._suffix_of_stem: dict[str, str] = {}  # of the transcripts that are files of their own
        self._holds_speech = False

    @property
    def is_complete(self) -> bool:
        """True if every audio file and every transcript has its partner."""
        return not self._audio_of_stem and not self._transcript_of_stem

    def add_audio(self, stem: str, audio: AudioRef | bytes) -> Iterator[Item]:
        """Add an audio file, and yield its utterance if the transcript is known already."""
        self._holds_speech = True
        if stem in self._audio_of_stem:
            yield Rejected(self._source, stem, "a second audio file of the same name")
        else:
            self._audio_of_stem[stem] = audio
            yield from self._match(stem)

    def add_transcripts(self, name: str, data: bytes) -> Iterator[Item]:
        """Add the text file `name`, and yield the utterances whose audio is known already."""
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            yield Rejected(self._source, name, "a transcript that is not UTF-8 text")
            return
        suffix = PurePath(name).suffix.lower()
        read = self._lines if name.endswith(".trans.txt") else self._json if suffix == ".json" else self._whole
        for stem, transcript in read(name, text):
            if self._is_known(stem, suffix):
                continue  # such as NAME.txt and NAME.json, which say the same
            if stem in self._transcript_of_stem:
                yield Rejected(self._source, stem, "a second transcript")
            else:
                self._transcript_of_stem[stem] = transcript
                if read != self._lines:
                    self._suffix_of_stem[stem] = suffix
                yield from self._match(stem)

    def unmatched(self) -> Iterator[Rejected]:
        """Yield the audio files and transcripts that have no partner."""
        for stem in self._audio_of_stem:
            yield Rejected(self._source, stem, "no transcript")
        if self._holds_speech:  # text files of a directory without speech, such as README.txt, are not transcripts
            for stem in self._transcript_of_stem:
                yield Rejected(self._source, stem, "no audio file")

    def _match(self, stem: str) -> Iterator[Utterance]:
        if stem in self._audio_of_stem and stem in self._transcript_of_stem:
            audio, transcript = self._audio_of_stem.pop(stem), self._transcript_of_stem.pop(stem)
            if suffix := self._suffix_of_stem.pop(stem, ""):
                self._matched.add(f"{self._directory}/{stem}")
                self._matched.add(f"{self._directory}/{stem}{suffix}")
            transcript["text"] = timit.without_samples(transcript["text"], audio)
            speaker, split = (transcript.get(key, "") for key in ("speaker", "split"))
            yield Utterance(transcript["id"], transcript["text"], audio, self._source, speaker, split)

    def _is_known(self, stem: str, suffix: str) -> bool:
        """Return whether an audio file has a transcript from a file with another suffix."""
        place = f"{self._directory}/{stem}"
        is_matched = place in self._matched and f"{place}{suffix}" not in self._matched
        return is_matched or self._suffix_of_stem.get(stem, suffix) != suffix

    def _lines(self, name: str, text: str) -> Iterator[tuple[str, dict[str, str]]]:
        self._holds_speech = True
        speaker_and_split = self._speaker_and_split(name)
        for line in text.split("\n"):
            utterance_id, *words = re.split(r"[ \t]+", line.strip(), maxsplit=1)
            if utterance_id:
                yield utterance_id, {"id": utterance_id, "text": "".join(words)} | speaker_and_split

    def _whole(self, name: str, text: str) -> Iterator[tuple[str, dict[str, str]]]:
        if name.lower().endswith(".lab") and ALIGNMENT.fullmatch(text.strip() + "\n"):
            return
        fields = {"text": " ".join(text.split())} | timit.speaker_and_split(self._directory)
        yield self._named(name, fields)

    def _json(self, name: str, text: str) -> Iterator[tuple[str, dict[str, str]]]:
        if fields := fields_of_json(text):
            yield self._named(name, fields)

    def _named(self, name: str, fields: dict[str, str]) -> tuple[str, dict[str, str]]:
        stem = PurePath(name).stem
        # The id contains the directory, because many directories may have a file 001.wav.
        utterance_id = "/".join([*self._directory.parts[1:], stem])
        return stem, {"id": utterance_id, "split": innermost(self._directory.parts)} | fields

    def _speaker_and_split(self, name: str) -> dict[str, str]:
        """Return speaker and split if the path is [SPLIT/]SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt, else nothing."""
        *_, split, speaker, chapter = ["", "", "", *self._directory.parts]
        return {"speaker": speaker, "split": split} if name == f"{speaker}-{chapter}.trans.txt" else {}
