"""What libsndfile can say of an open file."""

import soundfile


def can_read(sound: soundfile.SoundFile, frame: int) -> bool:
    """Whether that frame can be read: of the last one, it finds truncated files for 0.06 ms more each."""
    try:
        sound.seek(frame)
        return len(sound.read(1)) == 1
    except soundfile.SoundFileError:  # what libsndfile says of it ("Internal psf_fseek() failed") helps nobody
        return False
