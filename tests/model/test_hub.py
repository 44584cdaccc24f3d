"""Models from the Hugging Face Hub where nothing answers."""

import logging
import time

import pytest
from huggingface_hub import constants

from w2v_lightning.compat import hub
from w2v_lightning.errors import InputError
from w2v_lightning.model import stored


@pytest.fixture
def dead_hub(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "_reached", set())


def test_a_hub_that_does_not_answer_is_named_once_and_soon(dead_hub, caplog):
    caplog.set_level(logging.INFO)
    start = time.monotonic()
    with pytest.raises(InputError, match=r"'some/model' is not a local folder.*127.0.0.1:9 cannot be reached"):
        stored.model_config("some/model")
    assert time.monotonic() - start < 5
    assert caplog.messages == ["Fetching some/model from http://127.0.0.1:9."]


def test_a_cached_model_is_used_without_the_hub(dead_hub, caplog, monkeypatch):
    monkeypatch.setattr(hub, "_cached_config", lambda name: "/cache/config.json")
    hub.check_reachable("some/model")
    assert "using the cached copy of some/model" in caplog.text
    assert constants.HF_HUB_OFFLINE
