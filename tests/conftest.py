import os
from pathlib import Path
from unittest import mock

import pytest

from w2v_lightning.runtime import signals

# Before anything imports a Hugging Face library: no test may reach for the network.
os.environ["HF_HUB_OFFLINE"] = "1"
# Tests run side by side: two torch thread pools on two cores slow each other down several times over.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", os.environ.get("W2V_TEST_GPUS", ""))
if "W2V_TEST_GPUS" not in os.environ:
    os.environ["TRITON_INTERPRET"] = "1"  # Triton kernels then run on the CPU

LIBRISPEECH = Path(os.environ.get("LIBRISPEECH", Path(__file__).parents[2] / "shared" / "LibriSpeech"))


@pytest.fixture(autouse=True)
def same_environment():
    """Lightning's launchers leave variables behind; a run that a later test starts would take itself for a rank."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(autouse=True)
def same_sigterm():
    """A command that ends in an exception still listens, as its process is about to end; the tests' process is not."""
    yield
    signals.watch.stop()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("W2V_LIGHTNING_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def librispeech() -> Path:
    """The folder of real speech; set LIBRISPEECH to one that holds train-clean-100 and dev-clean."""
    if not (LIBRISPEECH / "dev-clean").is_dir():
        pytest.skip("no real speech: set LIBRISPEECH to a folder with train-clean-100 and dev-clean")
    return LIBRISPEECH
