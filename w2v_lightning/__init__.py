"""Fine-tune wav2vec2 for speech recognition with PyTorch Lightning, on a laptop or on a cluster.

>>> from w2v_lightning import LibriSpeechDataModule, Wav2Vec2CTC
"""

from importlib import import_module
from typing import TYPE_CHECKING

from w2v_lightning.runtime.cores import share_cores

if TYPE_CHECKING:
    from w2v_lightning.data.datamodule import LibriSpeechDataModule
    from w2v_lightning.module import Wav2Vec2CTC
    from w2v_lightning.pretraining import Wav2Vec2Pretraining
    from w2v_lightning.strategies.smddp import SMDDPStrategy

share_cores()  # before anything imports torch

__version__ = "0.1.0"
__all__ = ["LibriSpeechDataModule", "SMDDPStrategy", "Wav2Vec2CTC", "Wav2Vec2Pretraining", "__version__"]

# Imported on first use, so that `--help` does not wait seconds for torch, lightning and transformers.
_MODULES = {
    "LibriSpeechDataModule": "w2v_lightning.data.datamodule",
    "SMDDPStrategy": "w2v_lightning.strategies.smddp",
    "Wav2Vec2CTC": "w2v_lightning.module",
    "Wav2Vec2Pretraining": "w2v_lightning.pretraining",
}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
