"""Fitted models that are kept between commands, because a fit takes seconds and its runs seldom change."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from w2v_lightning.errors import InputError
from w2v_lightning.perf_model.fitted import Fitted
from w2v_lightning.perf_model.runs import Run
from w2v_lightning.runtime.user_cache import cache_root


def kept_fit(runs: Sequence[Run]) -> Fitted:
    """Return the model that is fitted to the runs: the kept one, or a new one, which is then kept.

    A kept model is used only for the same runs, and by the same version of this package's model, numpy and scipy.

    Raises:
        InputError: no run trained for long enough, or scipy is missing.
    """
    path = cache_root() / "fits" / f"{_key(runs)}.json"
    if path.is_file():
        try:
            return Fitted.load(path)
        except InputError:  # it is damaged, so it is replaced
            pass
    from w2v_lightning.perf_model.fitting import fit  # imports scipy

    fitted = fit(runs)
    try:
        fitted.save(path)
    except OSError:  # the cache cannot be written: the next command fits again
        return fitted
    return Fitted.load(path)  # a file has fewer digits, and every command shall print the same


def _key(runs: Sequence[Run]) -> str:
    """Return the hash of all that the fit depends on."""
    digest = hashlib.sha256(json.dumps([asdict(run) for run in runs], sort_keys=True).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    try:
        digest.update(f"{version('numpy')} {version('scipy')}".encode())
    except ModuleNotFoundError as error:
        raise InputError("Fitting a study needs scipy: pip install 'w2v-lightning[study]'.") from error
    return digest.hexdigest()[:32]
