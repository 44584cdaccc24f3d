"""Settings that a model folder, or a model on the Hugging Face Hub, has beside its weights."""

from typing import NamedTuple

from transformers import AutoConfig, Wav2Vec2Config, Wav2Vec2FeatureExtractor

from w2v_lightning.compat import hub
from w2v_lightning.compat.transformers import stored_file
from w2v_lightning.data.batch import SAMPLE_RATE
from w2v_lightning.errors import InputError
from w2v_lightning.model import settings
from w2v_lightning.text.vocabulary import Vocabulary

MAX_REASON = 300  # characters of another library's message


class WaveformFormat(NamedTuple):
    """Waveforms that a model was trained on."""

    normalise: bool = True  # zero mean and unit variance per utterance
    sample_rate: int = SAMPLE_RATE  # Hz


def model_config(name_or_folder: str) -> Wav2Vec2Config:
    """Return the settings in config.json.

    Raises:
        InputError: the model does not exist, is not a wav2vec2 model, or has a setting that is not supported.
    """
    hub.check_reachable(name_or_folder)
    try:
        stored = AutoConfig.from_pretrained(name_or_folder)
    except Exception as error:  # transformers and its validation raise many types of exception for a damaged config
        raise InputError(
            f"model.pretrained: {name_or_folder!r} is neither a local model folder nor available on the Hugging Face"
            f" Hub ({reason_of(error)})."
        ) from error
    if not isinstance(stored, Wav2Vec2Config):
        raise InputError(
            f"model.pretrained: {name_or_folder!r} is a {stored.model_type} model; a wav2vec2 model is required."
        )
    settings.check_stored(name_or_folder, stored)
    return stored


def vocabulary_of(
    name_or_folder: str, num_outputs: int | None = None, target_lang: str | None = None
) -> Vocabulary | None:
    """Return the vocabulary, of a language if the model has several; None if there is no vocab.json."""
    path = stored_file(name_or_folder, "vocab.json")
    if path is None:
        return None
    for name in ("tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"):
        stored_file(name_or_folder, name)  # a download from the Hub puts it beside vocab.json
    return Vocabulary.load(path.parent, num_outputs, target_lang)


def has_head(stored: Wav2Vec2Config) -> bool:
    """Return whether a model has a CTC head."""
    return "Wav2Vec2ForCTC" in (stored.architectures or [])


def fits_head(
    vocabulary: Vocabulary | None, name_or_folder: str, stored: Wav2Vec2Config, target_lang: str | None
) -> bool:
    """Return True if the CTC head is for the tokens of `vocabulary`; the number of unused tokens may differ."""
    return vocabulary is None or vocabulary in (
        vocabulary_of(name_or_folder, stored.vocab_size, target_lang),
        vocabulary_of(name_or_folder, None, target_lang),
    )


def waveform_format(name_or_folder: str) -> WaveformFormat:
    """Return what preprocessor_config.json says of the waveforms; the usual format for a bare checkpoint.

    Raises:
        InputError: the sample rate is not a positive whole number.
    """
    try:
        extractor = Wav2Vec2FeatureExtractor.from_pretrained(name_or_folder)
    except OSError:
        return WaveformFormat()
    rate = extractor.sampling_rate
    if not isinstance(rate, int) or isinstance(rate, bool) or rate <= 0:
        raise InputError(
            f"model.pretrained: {name_or_folder}: sampling_rate in preprocessor_config.json is {rate!r}, must be a"
            f" positive number of samples per second, such as {SAMPLE_RATE}."
        )
    return WaveformFormat(extractor.do_normalize, rate)


def reason_of(error: Exception) -> str:
    """Return the message of another library on one line of limited length."""
    return " ".join(str(error).split())[:MAX_REASON]
