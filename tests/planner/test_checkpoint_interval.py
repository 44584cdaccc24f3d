"""Checkpoint interval of spot jobs."""

import numpy as np
import pytest

from w2v_lightning.checkpoints.recent import Interval
from w2v_lightning.config import DEFAULT_CHECKPOINT_EVERY
from w2v_lightning.planner.checkpoint_interval import checkpoint_every, save_s, young_daly_s


@pytest.mark.parametrize(("save", "mean_time"), [(11, 36_000), (38, 18_000), (60, 7_200)])
def test_the_interval_is_where_the_simulated_loss_is_least(save, mean_time):
    """By brute force over all intervals: the loss is the time of saving plus half an interval per interruption."""
    intervals = np.arange(save, 4 * 3600)
    loss = save / intervals + intervals / 2 / mean_time
    assert young_daly_s(save, mean_time) == pytest.approx(intervals[loss.argmin()], abs=1)


def test_never_more_often_than_a_save_takes():
    assert young_daly_s(save_s=600, mean_time_to_interruption_s=100) == 600


def test_larger_models_save_less_often_and_more_instances_more_often():
    base, large = ({"model": {"pretrained": f"facebook/wav2vec2-{size}"}} for size in ("base", "large-lv60"))
    assert save_s(large) == pytest.approx(save_s(base) * 317 / 95)
    assert save_s({"model": {"pretrained": None, "config": {"hidden_size": 1024}}}) == save_s(large)
    assert [checkpoint_every(*what) for what in ((base, 1, 0.1), (large, 1, 0.1), (base, 4, 0.1))] == [
        "15m",
        "28m",
        "8m",
    ]
    assert Interval.parse(checkpoint_every(base, 10_000, 1)).seconds == 60


def test_it_takes_the_place_of_the_default_of_fit():
    from w2v_lightning.checkpoints import options
    from w2v_lightning.cli import Parser

    parser = Parser()
    options.add_options(parser)
    assert parser.get_default("checkpoint_every") == DEFAULT_CHECKPOINT_EVERY
