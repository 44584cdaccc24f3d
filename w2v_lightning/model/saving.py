"""Saving of a model as a folder of transformers, complete or not at all."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import AutoTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC, Wav2Vec2Processor

from w2v_lightning.data.batch import SAMPLE_RATE
from w2v_lightning.model import adapters
from w2v_lightning.text.vocabulary import Vocabulary


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
