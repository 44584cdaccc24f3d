"""Names of what a file is by its first bytes, for files that libsndfile does not read."""

CAF = "CAF with a codec that libsndfile lacks"
OGG = "OGG with a codec that libsndfile lacks, such as Speex"
MEDIA = {  # read by ffmpeg; position and bytes
    (4, b"ftyp"): "AAC or ALAC in MP4/M4A",
    (0, b"\x1a\x45\xdf\xa3"): "WebM or Matroska",
    (0, b"#!AMR"): "AMR",
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"): "WMA (ASF)",
    (0, b"FLV\x01"): "Flash video",
    (0, b"MAC "): "Monkey's Audio",
    (0, b"wvpk"): "WavPack",
    (0, b"TTA1"): "True Audio",
    (0, b".RMF"): "RealMedia",
    (0, b"#!SILK"): "SILK",
    (0, b"\x02#!SILK"): "SILK",
    (0, b"caff"): CAF,
    (0, b"OggS"): OGG,
    (0, b"ADIF"): "AAC",
    (0, b"\x00\x00\x01\xba"): "MPEG video",
}
OTHER = {
    b"version https://git-lfs": "a git-lfs pointer, not the audio: run `git lfs pull` in its repository",
    b"/annex/objects/": "a git-annex pointer, not the audio: run `git annex get` in its repository",
    b"\x1f\x8b": "a gzip archive: unpack it",
    b"PK\x03\x04": "a zip archive: unpack it",
    b"Rar!": "a RAR archive: unpack it",
    b"%PDF": "a PDF document: download the audio again",
    b"<?xml": "an XML page, such as a server's error: download the audio again",
    b"<!doctype html": "an HTML page, such as a server's error: download the audio again",
    b"<html": "an HTML page, such as a server's error: download the audio again",
    b"{": "JSON text, such as a server's error: download the audio again",
}


def media(head: bytes) -> str:
    """Return the name of an audio or video format that ffmpeg reads, by the first bytes of a file; "" if none is."""
    for (position, magic), name in MEDIA.items():
        if head[position : position + len(magic)] == magic:
            return name
    is_adts = len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0
    return "AAC" if is_adts else ""


def other(head: bytes) -> str:
    """Return what a file is that holds no audio, with the remedy, by its first bytes; "" if it is not known."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((name for magic, name in OTHER.items() if start.startswith(magic.lower())), "")
