"""AudioRef, the location of the audio of one utterance, as the manifest passes it to the reader."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AudioRef:
    """Location of the audio of one utterance."""

    url: str  # a local path, or a URL for fsspec
    byte_offset: int = 0
    num_bytes: int = 0  # 0: to the end of the file
    start_s: float | None = None  # start of a segment of a longer recording; None: the whole recording
    duration_s: float = 0.0
    channel: int | None = None  # 0-based; None: the mean of all channels

    def __str__(self) -> str:
        place = f" (bytes {self.byte_offset} to {self.byte_offset + self.num_bytes})" if self.num_bytes else ""
        return self.url + place
