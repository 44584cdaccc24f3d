"""Models that are kept between commands."""

from dataclasses import replace

import pytest
from synthetic_study import parameters, runs, t4

from w2v_lightning.perf_model import fitting, kept
from w2v_lightning.runtime.user_cache import cache_root

SETUPS = [t4(1), t4(4)]
RUNS = runs(parameters(SETUPS), SETUPS)


@pytest.fixture
def fits(tmp_path, monkeypatch):
    """Use an empty cache; return the fits that were made."""
    monkeypatch.setenv("W2V_LIGHTNING_CACHE", str(tmp_path))
    made, fit = [], fitting.fit

    def counted(measured):
        made.append(measured)
        return fit(measured)

    monkeypatch.setattr(fitting, "fit", counted)
    return made


def test_the_same_runs_are_fitted_once_and_predict_the_same(fits):
    first, second = kept.kept_fit(RUNS), kept.kept_fit(RUNS)
    assert len(fits) == 1
    assert first.predict(t4(1, hosts=4)) == second.predict(t4(1, hosts=4))
    assert first.predict(t4(1)).terms.step_s == pytest.approx(fitting.fit(RUNS).predict(t4(1)).terms.step_s, rel=1e-4)


def test_other_runs_another_model_or_a_damaged_file_are_fitted_again(fits, monkeypatch):
    kept.kept_fit(RUNS)
    kept.kept_fit(RUNS[:1])
    assert len(fits) == 2
    kept.kept_fit([replace(RUNS[0], training_s=RUNS[0].training_s + 1), *RUNS[1:]])
    assert len(fits) == 3
    for path in (cache_root() / "fits").iterdir():
        path.write_text(path.read_text()[:100])
    kept.kept_fit(RUNS)
    kept.kept_fit(RUNS)
    assert len(fits) == 4
    monkeypatch.setattr(kept, "version", lambda name: "0.0")
    kept.kept_fit(RUNS)
    assert len(fits) == 5


def test_a_cache_that_cannot_be_written_is_no_hindrance(fits, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("W2V_LIGHTNING_CACHE", str(tmp_path / "file"))
    assert kept.kept_fit(RUNS).values
