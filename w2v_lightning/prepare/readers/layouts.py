"""Layouts of folders that `prepare` recognises; a folder is read in the first one that fits."""

from w2v_lightning.prepare.readers import audiofolder, common_voice, fairseq, kaldi, ljspeech, mls, nemo_tarred, shar
from w2v_lightning.prepare.readers.layout import Layout

LAYOUTS = (
    Layout("Kaldi data directory", kaldi.recognises, kaldi.read),
    Layout("Common Voice", common_voice.recognises, common_voice.read),
    Layout("Multilingual LibriSpeech", mls.recognises, mls.read),
    Layout("LJSpeech", ljspeech.recognises, ljspeech.read),
    Layout("audiofolder", audiofolder.recognises, audiofolder.read),
    Layout("fairseq lists", fairseq.recognises, fairseq.read),
    Layout("NeMo tarred manifest", nemo_tarred.recognises, nemo_tarred.read),
    Layout("lhotse Shar", shar.recognises, shar.read),
)
