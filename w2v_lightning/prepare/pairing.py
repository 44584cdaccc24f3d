"""Audio files and transcripts of one directory brought together, in whatever order they come.

ID.flac with `ID TRANSCRIPT` as a line of a .trans.txt, as LibriSpeech has it; or NAME.wav with NAME.txt.
"""

from collections.abc import Iterator
from pathlib import PurePath

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.prepare.utterance import Item, Rejected, Utterance


class Pairing:
    """One directory; only what waits for its partner is kept."""

    def __init__(self, directory: PurePath, source: str) -> None:
        """`directory` starts with the corpus's own folder: LibriSpeech/dev-clean/84/121123, or dev-clean/84/121123."""
        self._directory = directory
        self._source = source
        self._audio_of_stem: dict[str, AudioRef | bytes] = {}
        self._transcript_of_stem: dict[str, dict[str, str]] = {}  # the fields of Utterance that a transcript decides
        self._holds_speech = False

    @property
    def is_complete(self) -> bool:
        """Nothing waits."""
        return not self._audio_of_stem and not self._transcript_of_stem

    def add_audio(self, stem: str, audio: AudioRef | bytes) -> Iterator[Item]:
        """The utterance, if its transcript is known already."""
        self._holds_speech = True
        if stem in self._audio_of_stem:
            yield Rejected(self._source, stem, "a second audio file of the same name")
        else:
            self._audio_of_stem[stem] = audio
            yield from self._matched(stem)

    def add_transcripts(self, name: str, data: bytes) -> Iterator[Item]:
        """The utterances of the text file `name` whose audio is known already."""
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            yield Rejected(self._source, name, "a transcript that is not UTF-8 text")
            return
        lines = self._lines(name, text) if name.endswith(".trans.txt") else self._whole(name, text)
        for stem, transcript in lines:
            if stem in self._transcript_of_stem:
                yield Rejected(self._source, stem, "a second transcript")
            else:
                self._transcript_of_stem[stem] = transcript
                yield from self._matched(stem)

    def unmatched(self) -> Iterator[Rejected]:
        """What waited in vain."""
        for stem in self._audio_of_stem:
            yield Rejected(self._source, stem, "no transcript")
        if self._holds_speech:  # a README.txt elsewhere is no transcript
            for stem in self._transcript_of_stem:
                yield Rejected(self._source, stem, "no audio file")

    def _matched(self, stem: str) -> Iterator[Utterance]:
        if stem in self._audio_of_stem and stem in self._transcript_of_stem:
            audio, transcript = self._audio_of_stem.pop(stem), self._transcript_of_stem.pop(stem)
            yield Utterance(audio=audio, source=self._source, **transcript)

    def _lines(self, name: str, text: str) -> Iterator[tuple[str, dict[str, str]]]:
        self._holds_speech = True
        origin = self._origin(name)
        for line in text.split("\n"):
            utterance_id, _, words = line.strip().partition(" ")
            if utterance_id:
                yield utterance_id, {"id": utterance_id, "text": words.strip()} | origin

    def _whole(self, name: str, text: str) -> Iterator[tuple[str, dict[str, str]]]:
        stem = PurePath(name).stem
        # With the directory, because 001.wav may lie in each of many.
        yield stem, {"id": "/".join([*self._directory.parts[1:], stem]), "text": " ".join(text.split())}

    def _origin(self, name: str) -> dict[str, str]:
        """Speaker and split, where the directory is [SPLIT/]SPEAKER/CHAPTER and `name` SPEAKER-CHAPTER.trans.txt."""
        *_, split, speaker, chapter = ["", "", "", *self._directory.parts]
        return {"speaker": speaker, "split": split} if name == f"{speaker}-{chapter}.trans.txt" else {}
