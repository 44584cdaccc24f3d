import os
from pathlib import Path
from unittest import mock

import pytest

from w2v_lightning.runtime import signals

# Set before any Hugging Face library is imported: no test may use the network.
os.environ["HF_HUB_OFFLINE"] = "1"
# Tests run in parallel, and several thread pools of torch on two cores slow each other down several times.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("CUDA_VISIBLE_DEVICES", os.environ.get("W2V_TEST_GPUS", ""))
if "W2V_TEST_GPUS" not in os.environ:
    os.environ["TRITON_INTERPRET"] = "1"  # Triton kernels then run on the CPU


@pytest.fixture(autouse=True)
def same_environment():
    """Restore the environment: Lightning's launchers leave variables that make a later run take itself for a rank."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(autouse=True)
def same_sigterm():
    """Stop handling SIGTERM: a command that ends in an exception still does, but the process of the tests lives on."""
    yield
    signals.sigterm.stop()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("W2V_LIGHTNING_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def librispeech() -> Path:
    """Folder of real speech, named by the environment variable LIBRISPEECH: it holds train-clean-100 and dev-clean."""
    folder = Path(os.environ.get("LIBRISPEECH", ""))
    if not (folder / "dev-clean").is_dir():
        pytest.skip("no real speech: set LIBRISPEECH to a folder with train-clean-100 and dev-clean")
    return folder
