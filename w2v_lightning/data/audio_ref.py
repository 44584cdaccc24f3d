"""Where the audio of one utterance lies: what the manifest hands to the reader."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AudioRef:
    """Where the audio of one utterance lies."""

    url: str  # a local path, or a URL that fsspec knows
    byte_offset: int = 0
    num_bytes: int = 0  # 0: to the end of the file
    start_s: float | None = None  # a segment of a longer recording; None: all of it
    duration_s: float = 0.0

    def __str__(self) -> str:
        place = f" (bytes {self.byte_offset} to {self.byte_offset + self.num_bytes})" if self.num_bytes else ""
        return self.url + place
