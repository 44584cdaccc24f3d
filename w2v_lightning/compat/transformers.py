"""Private names of transformers."""

from pathlib import Path

from torch import nn
from transformers import PreTrainedModel, Wav2Vec2ForCTC
from transformers.utils import cached_file


def initialise(model: PreTrainedModel, module: nn.Module) -> None:
    """Initialise the weights of a part of `model` as transformers would."""
    model._init_weights(module)


def adapter_parameters(model: Wav2Vec2ForCTC) -> dict[str, nn.Parameter]:
    """Return the weights of an MMS model that belong to its language: the adapters and the CTC head."""
    return model._get_adapters()


def stored_file(name_or_folder: str, filename: str) -> Path | None:
    """Return the path of a file of a model folder or Hub repository, downloaded if necessary; None if it has none."""
    path = cached_file(name_or_folder, filename, _raise_exceptions_for_missing_entries=False)
    return Path(path) if path else None
