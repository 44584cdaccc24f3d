"""Wav2Vec2ForCTC: building, loading, running, saving. Weights are compatible with transformers in both directions."""

import logging
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function
from transformers import (
    AutoConfig,
    AutoTokenizer,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
)

from w2v_lightning.compat import transformers as compat
from w2v_lightning.data.batch import SAMPLE_RATE, InputSpec
from w2v_lightning.errors import InputError
from w2v_lightning.model import adapters, settings
from w2v_lightning.model.encoder import contextualise, projected
from w2v_lightning.model.features import conv_features
from w2v_lightning.model.speed import Speed
from w2v_lightning.text.vocabulary import Vocabulary

log = logging.getLogger(__name__)

MAX_REASON = 300  # characters of another library's message


def from_scratch(config: Mapping[str, Any], vocabulary: Vocabulary) -> Wav2Vec2ForCTC:
    """Return a model with random weights; `config` holds changes to transformers' Wav2Vec2Config."""
    settings.check_changes(config, _head_config(vocabulary))
    return Wav2Vec2ForCTC(Wav2Vec2Config(**{**_head_config(vocabulary), **config}))


def from_pretrained(
    name_or_folder: str,
    config: Mapping[str, Any],
    vocabulary: Vocabulary | None = None,
    target_lang: str | None = None,
) -> tuple[Wav2Vec2ForCTC, Vocabulary, bool]:
    """Load a model from the Hugging Face Hub or a local folder; return it, its vocabulary, and if it normalises input.

    A model without a CTC head (pre-trained only), or with one for other tokens than those of `vocabulary`, gets a new
    head. The vocabulary is `vocabulary`, otherwise that of the model, otherwise the default one. `target_lang` chooses
    the adapter, head and vocabulary of a language; given with `vocabulary`, it may be new.

    Raises:
        InputError: the model does not exist, is not a wav2vec2 model or lacks weights, or its vocabulary does not fit
            its head.
    """
    settings.check_changes(config)
    stored = stored_config(name_or_folder)
    adapter = adapters.read(name_or_folder, stored, target_lang, vocabulary is not None) if target_lang else {}
    if "lm_head.weight" in adapter:
        stored.vocab_size = len(adapter["lm_head.weight"])
    is_new_language = bool(target_lang) and not adapter
    fits_head = not is_new_language and _fits_head(vocabulary, name_or_folder, stored, target_lang)
    keeps_head = _has_head(stored) and fits_head
    if keeps_head:
        vocabulary = _stored_vocabulary(name_or_folder, stored.vocab_size, target_lang)
        _check_vocabulary_fits(name_or_folder, stored, vocabulary)
    vocabulary = vocabulary or _stored_vocabulary(name_or_folder) or Vocabulary()
    settings.check_changes(config, _head_config(vocabulary))
    # The default dtype is that of the file: weights stored in half precision would be trained in half precision.
    with loading_errors_named(name_or_folder):
        loaded: Any = Wav2Vec2ForCTC.from_pretrained(  # returns a pair because of output_loading_info
            name_or_folder,
            config=Wav2Vec2Config.from_dict({**stored.to_dict(), **_head_config(vocabulary), **config}),
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # ours are the errors that name the cause
        )
    model: Wav2Vec2ForCTC
    loading: dict[str, Any]
    model, loading = loaded
    mismatched = [
        entry for entry in loading["mismatched_keys"] if (keeps_head and not adapter) or "lm_head" not in entry[0]
    ]
    settings.check_shapes(name_or_folder, stored, config, mismatched)
    _check_nothing_missing(name_or_folder, set(loading["missing_keys"]) - adapter.keys(), keeps_head)
    adapters.apply(name_or_folder, model, {k: w for k, w in adapter.items() if keeps_head or "lm_head" not in k})
    if not keeps_head:
        old = f"has a CTC head for {stored.vocab_size} tokens" if _has_head(stored) else "is a pre-trained encoder"
        log.info(
            "%s %s: adding a new CTC head for the %d tokens of the vocabulary.", name_or_folder, old, len(vocabulary)
        )
        _renew_head(model)
    if is_new_language:
        log.info("%s has no language %s: adding a new adapter for it.", name_or_folder, target_lang)
        model.init_adapter_layers()
    return model, vocabulary, stored_normalise(name_or_folder)


def check_head(
    option: str, name_or_folder: str, remedy: str, vocabulary: Vocabulary | None = None, target_lang: str | None = None
) -> None:
    """Check that a model can be used without training: a new head would produce random text.

    Raises:
        InputError: the model has no CTC head, or one for other tokens than those of `vocabulary`.
    """
    stored = stored_config(name_or_folder)
    if not _has_head(stored):
        problem = f"{name_or_folder} is an encoder without a CTC head ({', '.join(stored.architectures or ['bare'])})"
    elif not _fits_head(vocabulary, name_or_folder, stored, target_lang):
        problem = f"the CTC head of {name_or_folder} is for other tokens than model.vocabulary"
    else:
        return
    raise InputError(f"{option}: {problem}, so the output would be random text; {remedy}.")


def freeze(model: Wav2Vec2ForCTC, feature_encoder: bool) -> None:
    """Freeze the parameters that will get no gradient."""
    if feature_encoder:
        model.freeze_feature_encoder()
    if not settings.masks_time(model.config) and hasattr(model.wav2vec2, "masked_spec_embed"):
        model.wav2vec2.masked_spec_embed.requires_grad_(False)  # DDP would wait for its gradient


def input_spec(
    config: Wav2Vec2Config, vocabulary: Vocabulary, normalise: bool, sample_rate: int = SAMPLE_RATE
) -> InputSpec:
    """Return what the data module must know about the input of this model."""
    return InputSpec(
        vocabulary=vocabulary,
        conv_kernel=tuple(config.conv_kernel),
        conv_stride=tuple(config.conv_stride),
        num_channels=config.hidden_size,
        normalise=normalise,
        sample_rate=sample_rate,
        spec_augment=settings.spec_augment(config),
    )


def ctc_logits(
    model: Wav2Vec2ForCTC,
    waveforms_BT: Tensor,
    num_samples_B: Tensor,
    time_mask_BF: Tensor | None = None,
    channel_mask_BC: Tensor | None = None,
    *,
    dropped_layers: Collection[int] = (),
    hf_compat: bool = False,
    is_frozen: bool = False,
    speed: Speed = Speed(),
) -> Tensor:
    """Return the logits (B, F, V) of `model` with the given masks; those of an utterance do not depend on the others.

    For a single utterance they are the same as those of `Wav2Vec2ForCTC.forward`, which draws its masks itself, on the
    CPU in every step, and whose base models see the padding (`model/encoder.py`).

    Args:
        model: transformers' model.
        waveforms_BT: float32, padded with 0.
        num_samples_B: int64, samples of each utterance without its padding, on the CPU.
        time_mask_BF, channel_mask_BC: bool, True where a frame is replaced by the mask embedding, a channel zeroed.
        dropped_layers: transformer layers that are skipped in this pass.
        hf_compat: True for the output of transformers for a padded batch; without an attention mask, its models with
            group norm see the padding.
        is_frozen: True if only the head gets gradients.
        speed: choice of the implementation.
    """
    num_frames_B: Tensor | None
    wav2vec2, config = model.wav2vec2, model.config
    with torch.set_grad_enabled(torch.is_grad_enabled() and not is_frozen):
        num_frames_B = _frames(config).num_frames(num_samples_B)
        sees_padding = hf_compat and config.feat_extract_norm == "group"
        if sees_padding:
            num_samples_B, num_frames_B = torch.full_like(num_samples_B, waveforms_BT.shape[1]), None
        with record_function("feature encoder"):
            features_BFC = conv_features(wav2vec2, waveforms_BT, num_samples_B, speed)
        hidden_BFC, _ = projected(wav2vec2, features_BFC, time_mask_BF, channel_mask_BC, speed)
        hidden_BFC = contextualise(wav2vec2, hidden_BFC, num_frames_B, dropped_layers, speed)
    return model.lm_head(model.dropout(hidden_BFC))


def _frames(config: Wav2Vec2Config) -> InputSpec:
    """Return the geometry of the convolutions."""
    return InputSpec(conv_kernel=tuple(config.conv_kernel), conv_stride=tuple(config.conv_stride))


def save_pretrained(
    folder: Path,
    model: Wav2Vec2ForCTC,
    vocabulary: Vocabulary,
    normalise: bool,
    sample_rate: int = SAMPLE_RATE,
    target_lang: str | None = None,
) -> None:
    """Write a Hugging Face folder that AutoModelForCTC and AutoProcessor load.

    A new folder appears complete or not at all; other files in an existing folder are kept.
    """
    with complete_or_absent(folder) as temporary:
        model.save_pretrained(temporary)
        vocabulary.save(temporary)
        tokenizer = AutoTokenizer.from_pretrained(temporary)
        processor = Wav2Vec2Processor(feature_extractor(normalise, sample_rate), tokenizer)
        processor.save_pretrained(temporary)
        processor.feature_extractor.save_pretrained(temporary)  # transformers 4 needs them in a separate file
        vocabulary.save(temporary)  # again, because the processor has rewritten it in its own form
        if target_lang:
            adapters.save(temporary, model, target_lang)


@contextmanager
def complete_or_absent(folder: Path) -> Iterator[Path]:
    """Provide a temporary folder to write into, which replaces `folder` at the end.

    If `folder` has other files, which are not ours to delete, its files are replaced one by one, config.json last.
    """
    folder = folder.resolve()  # keeps a symbolic link
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        complete = Path(temporary, "model")
        complete.mkdir()
        yield complete
        mode = complete.stat().st_mode & 0o666  # the umask's; safetensors makes its file readable only by the owner
        for part in complete.iterdir():
            part.chmod(mode)
        names = sorted((part.name for part in complete.iterdir()), key="config.json".__eq__)
        if folder.is_dir() and any(part.name not in names for part in folder.iterdir()):
            for name in names:
                complete.joinpath(name).replace(folder / name)
            return
        if folder.exists():
            folder.rename(Path(temporary, "previous"))
        complete.rename(folder)


def feature_extractor(normalise: bool, sample_rate: int = SAMPLE_RATE) -> Wav2Vec2FeatureExtractor:
    """Return a feature extractor with an attention mask: the transformer ignores padding, as in training."""
    return Wav2Vec2FeatureExtractor(sampling_rate=sample_rate, do_normalize=normalise, return_attention_mask=True)


def _renew_head(model: Wav2Vec2ForCTC) -> None:
    """Initialise the head again: an old head with the same number of tokens has been loaded."""
    model.lm_head = torch.nn.Linear(model.lm_head.in_features, model.lm_head.out_features)
    compat.initialise(model, model.lm_head)


def _has_head(stored: Wav2Vec2Config) -> bool:
    return "Wav2Vec2ForCTC" in (stored.architectures or [])


def _fits_head(
    vocabulary: Vocabulary | None, name_or_folder: str, stored: Wav2Vec2Config, target_lang: str | None
) -> bool:
    """Return True if the CTC head is for the tokens of `vocabulary`; the number of unused tokens may differ."""
    return vocabulary is None or vocabulary in (
        _stored_vocabulary(name_or_folder, stored.vocab_size, target_lang),
        _stored_vocabulary(name_or_folder, None, target_lang),
    )


def _head_config(vocabulary: Vocabulary) -> dict[str, object]:
    return {"vocab_size": len(vocabulary), "pad_token_id": vocabulary.blank_id, "ctc_zero_infinity": True}


@contextmanager
def loading_errors_named(name_or_folder: str) -> Iterator[None]:
    """Turn what transformers raises for a model that it cannot load into an InputError that names it.

    With torch before 2.6 it refuses to unpickle weights (CVE-2025-32434).
    """
    try:
        yield
    except ValueError as error:
        if "torch.load" not in str(error):
            raise _cannot_be_built(name_or_folder, error) from error
        raise InputError(
            f"model.pretrained: {name_or_folder} has its weights in pytorch_model.bin, which transformers does not load"
            f" with torch {torch.__version__}; give a model with model.safetensors (docs/smddp.md), or use torch 2.6 or"
            " later."
        ) from error
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        raise _cannot_be_built(name_or_folder, error) from error


def _cannot_be_built(name_or_folder: str, error: Exception) -> InputError:
    return InputError(
        f"model.pretrained: {name_or_folder}: transformers cannot build the model that config.json and model.config"
        f" describe: {type(error).__name__}: {_reason(error)}. Correct the value, or restore config.json."
    )


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:MAX_REASON]


def stored_config(name_or_folder: str) -> Wav2Vec2Config:
    try:
        stored = AutoConfig.from_pretrained(name_or_folder)
    except Exception as error:  # transformers and its validation raise many types of exception for a damaged config
        raise InputError(
            f"model.pretrained: {name_or_folder!r} is neither a local model folder nor available on the Hugging Face"
            f" Hub ({_reason(error)})."
        ) from error
    if not isinstance(stored, Wav2Vec2Config):
        raise InputError(
            f"model.pretrained: {name_or_folder!r} is a {stored.model_type} model; a wav2vec2 model is required."
        )
    settings.check_stored(name_or_folder, stored)
    return stored


def _stored_file(name_or_folder: str, filename: str) -> Path | None:
    return compat.stored_file(name_or_folder, filename)


def _stored_vocabulary(
    name_or_folder: str, num_outputs: int | None = None, target_lang: str | None = None
) -> Vocabulary | None:
    path = _stored_file(name_or_folder, "vocab.json")
    if path is None:
        return None
    for name in ("tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"):
        _stored_file(name_or_folder, name)  # a download from the Hub puts it beside vocab.json
    return Vocabulary.load(path.parent, num_outputs, target_lang)


def stored_normalise(name_or_folder: str) -> bool:
    """Return True if the model was trained on normalised waveforms."""
    extractor = _stored_extractor(name_or_folder)
    return True if extractor is None else extractor.do_normalize


def stored_sample_rate(name_or_folder: str | None) -> int:
    """Return the sample rate (Hz) of the audio that a model was trained on; 16 kHz if nothing names another.

    Raises:
        InputError: the rate is not a positive whole number.
    """
    extractor = _stored_extractor(name_or_folder) if name_or_folder else None
    rate = SAMPLE_RATE if extractor is None else extractor.sampling_rate
    if not isinstance(rate, int) or isinstance(rate, bool) or rate <= 0:
        raise InputError(
            f"model.pretrained: {name_or_folder}: sampling_rate in preprocessor_config.json is {rate!r}, must be a"
            f" positive number of samples per second, such as {SAMPLE_RATE}."
        )
    return rate


def _stored_extractor(name_or_folder: str) -> Wav2Vec2FeatureExtractor | None:
    """Return the feature extractor of a model; None if it is a bare checkpoint."""
    try:
        return Wav2Vec2FeatureExtractor.from_pretrained(name_or_folder)
    except OSError:
        return None


def _check_vocabulary_fits(name: str, stored: Wav2Vec2Config, vocabulary: Vocabulary | None) -> None:
    if vocabulary is None:
        raise InputError(f"model.pretrained: {name} has a CTC head but no vocab.json with its tokens; add that file.")
    if len(vocabulary) != stored.vocab_size:
        raise InputError(
            f"model.pretrained: {name}: the tokenizer has {len(vocabulary)} tokens, but the CTC head has"
            f" {stored.vocab_size}; restore the vocab.json that the model was trained with."
        )
    if vocabulary.blank_id != stored.pad_token_id:
        raise InputError(
            f"model.pretrained: {name}: the CTC blank {vocabulary.blank!r} is token {vocabulary.blank_id} of the"
            f" tokenizer, but pad_token_id in config.json is {stored.pad_token_id}; make them equal."
        )


def _check_nothing_missing(name: str, missing: Iterable[str], has_head: bool) -> None:
    optional = ("masked_spec_embed",) if has_head else ("masked_spec_embed", "lm_head")
    required = sorted(key for key in missing if not any(part in key for part in optional))
    if required:
        raise InputError(
            f"model.pretrained: {name} lacks {len(required)} weights of a wav2vec2 model, such as {required[0]}; use a"
            " complete checkpoint."
        )
