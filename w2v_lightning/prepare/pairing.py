"""Matching of the audio files and transcripts of one directory, in any order.

Transcripts are lines `ID TRANSCRIPT` of a .trans.txt file for ID.flac, as in LibriSpeech, or NAME.txt for NAME.wav.
"""

from collections.abc import Iterator
from pathlib import PurePath

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.prepare.utterance import Item, Rejected, Utterance


class Pairing:
    """Audio files and transcripts of one directory; keeps only those that have no partner yet.

    Args:
        directory: path that starts with the corpus's own folder: LibriSpeech/dev-clean/84/121123 or
            dev-clean/84/121123.
        source: name of the directory for rejected utterances.
    """

    def __init__(self, directory: PurePath, source: str) -> None:
        self._directory = directory
        self._source = source
        self._audio_of_stem: dict[str, AudioRef | bytes] = {}
        self._transcript_of_stem: dict[str, dict[str, str]] = {}  # the fields of Utterance that a transcript decides
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
            yield from self._matched(stem)

    def add_transcripts(self, name: str, data: bytes) -> Iterator[Item]:
        """Add the text file `name`, and yield the utterances whose audio is known already."""
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            yield Rejected(self._source, name, "a transcript that is not UTF-8 text")
            return
        transcripts = self._lines(name, text) if name.endswith(".trans.txt") else self._whole(name, text)
        for stem, transcript in transcripts:
            if stem in self._transcript_of_stem:
                yield Rejected(self._source, stem, "a second transcript")
            else:
                self._transcript_of_stem[stem] = transcript
                yield from self._matched(stem)

    def unmatched(self) -> Iterator[Rejected]:
        """Yield the audio files and transcripts that have no partner."""
        for stem in self._audio_of_stem:
            yield Rejected(self._source, stem, "no transcript")
        if self._holds_speech:  # text files of a directory without speech, such as README.txt, are not transcripts
            for stem in self._transcript_of_stem:
                yield Rejected(self._source, stem, "no audio file")

    def _matched(self, stem: str) -> Iterator[Utterance]:
        if stem in self._audio_of_stem and stem in self._transcript_of_stem:
            audio, transcript = self._audio_of_stem.pop(stem), self._transcript_of_stem.pop(stem)
            yield Utterance(audio=audio, source=self._source, **transcript)

    def _lines(self, name: str, text: str) -> Iterator[tuple[str, dict[str, str]]]:
        self._holds_speech = True
        speaker_and_split = self._speaker_and_split(name)
        for line in text.split("\n"):
            utterance_id, _, words = line.strip().partition(" ")
            if utterance_id:
                yield utterance_id, {"id": utterance_id, "text": words.strip()} | speaker_and_split

    def _whole(self, name: str, text: str) -> Iterator[tuple[str, dict[str, str]]]:
        stem = PurePath(name).stem
        # The id contains the directory, because many directories may have a file 001.wav.
        yield stem, {"id": "/".join([*self._directory.parts[1:], stem]), "text": " ".join(text.split())}

    def _speaker_and_split(self, name: str) -> dict[str, str]:
        """Return speaker and split if the path is [SPLIT/]SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt, else nothing."""
        *_, split, speaker, chapter = ["", "", "", *self._directory.parts]
        return {"speaker": speaker, "split": split} if name == f"{speaker}-{chapter}.trans.txt" else {}
