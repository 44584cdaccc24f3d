"""Hugging Face Hub, asked once before transformers does, which retries each file for about 50 s without a word."""

import logging
from pathlib import Path

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from w2v_lightning.errors import InputError

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0
_reached: set[str] = set()  # names of models that need no further check in this process


def check_reachable(name: str) -> None:
    """Check that the Hub answers, unless the model is a local folder or cached.

    Raises:
        InputError: the Hub cannot be reached, and there is no cached copy.
    """
    if name in _reached or Path(name).exists() or constants.HF_HUB_OFFLINE:
        return
    is_cached = isinstance(_cached_config(name), str)
    if not is_cached:
        log.info("Fetching %s from %s.", name, constants.ENDPOINT)
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=TIMEOUT_S)
    except (HfHubHTTPError, HFValidationError):
        pass  # it answers, or the name is invalid: transformers says what is wrong
    except Exception as error:  # of httpx or requests, whichever this release of huggingface_hub uses
        if not is_cached:
            raise InputError(
                f"model.pretrained: {name!r} is not a local folder and not in the cache {constants.HF_HUB_CACHE}, and"
                f" {constants.ENDPOINT} cannot be reached ({' '.join(str(error).split())[:200]}). Name a local folder,"
                " copy the model to that cache, or set HF_ENDPOINT to a mirror or HTTPS_PROXY to a proxy."
            ) from error
        log.warning("%s cannot be reached: using the cached copy of %s.", constants.ENDPOINT, name)
        constants.HF_HUB_OFFLINE = True  # otherwise each file is tried for 50 s
    _reached.add(name)


def _cached_config(name: str) -> object:
    """Return the path of the cached config.json of a model, or something else if it is not cached."""
    try:
        return try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
