r"""Commands in Kaldi's wav.scp that only decode one file, such as `flac -c -d -s FILE |`: that file is read instead.

No command is ever executed. One that is not written exactly like these, or that contains characters that are special to
a shell, is not understood.
"""

import re

FILE = r"""(?P<quote>['"]?)(?P<file>[^\s'"|;&<>$`*?(){}\\-][^'"|;&<>$`*?(){}\\\n]*?)(?P=quote)"""
# Options after the file change neither what is said nor when: the reader converts rate and width itself. Most options
# before the file would override its header, so that it would be read as something else.
SOX_BEFORE = r"(?: (?:-t \w+|-G|-V\d))*"
SOX_AFTER = r"(?: (?:-t \w+|-r \d+k?|-b 16|-c 1|-e signed(?:-integer)?))*"
FFMPEG_BEFORE = r"(?: (?:-(?:v|loglevel) \w+|-nostdin|-hide_banner))*"
FFMPEG_AFTER = r"(?: (?:-vn|-f wav|-ar \d+|-ac 1|-(?:acodec|c:a) pcm_s16le))*"
COMMANDS = [
    re.compile(pattern)
    for pattern in (
        rf"cat {FILE}",
        rf"(?:\S*/)?sph2pipe(?: -f \w+| -p)*(?: -c (?P<channel>[12]))?(?: -f \w+| -p)* {FILE}",
        rf"(?:\S*/)?flac(?: -[cds]+| --decode| --stdout| --silent)+ {FILE}",
        rf"(?:\S*/)?sox{SOX_BEFORE} {FILE}{SOX_AFTER} -",
        rf"(?:\S*/)?ffmpeg{FFMPEG_BEFORE} -i {FILE}{FFMPEG_AFTER} (?:-|pipe:1)",
    )
]


def audio_of_command(command: str) -> tuple[str, int | None] | None:
    """Return file and channel (0-based, None for all) that a command such as `sph2pipe -f wav FILE |` decodes.

    Returns None for any other command.
    """
    words = re.sub(r"\s+", " ", command.removesuffix("|").strip())
    match = next(filter(None, (pattern.fullmatch(words) for pattern in COMMANDS)), None)
    if match is None or (not match["quote"] and " " in match["file"]):
        return None
    channel = match.groupdict().get("channel")
    return match["file"], int(channel) - 1 if channel else None
