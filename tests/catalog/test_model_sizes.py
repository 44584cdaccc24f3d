"""Estimated sizes of models."""

import pytest

from w2v_lightning.catalog.model_sizes import SIZES, layers_of, nearest_size, size_of, size_warning, width_of


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("facebook/wav2vec2-base", "base"),
        ("facebook/wav2vec2-base-960h", "base"),
        ("facebook/wav2vec2-large-lv60", "large"),
        ("facebook/wav2vec2-large-xlsr-53", "large"),
        ("facebook/wav2vec2-xls-r-300m", "large"),
        ("facebook/wav2vec2-xls-r-1b", "1B"),
        ("facebook/mms-1b-all", "1B"),
        ("facebook/wav2vec2-xls-r-2b", "2B"),
        ("facebook/wav2vec2-xls-r-2b-22-to-16", "2B"),
        ("someone/abc1base-of-11b", "base"),
    ],
)
def test_a_models_name_tells_its_size(name, size):
    assert size_of({"pretrained": name}).name == size
    assert size_warning({"pretrained": name}) is None


def test_where_nothing_tells_the_size_it_is_said():
    model = {"pretrained": "/opt/ml/input/data/data/mine"}
    assert size_of(model).name == "base"
    assert "mine is assumed to be a base model" in size_warning(model)
    assert size_warning({"pretrained": None}) is None  # transformers' default shape is base's


def test_a_config_tells_it_better_than_a_name():
    model = {"pretrained": "mine", "config": {"hidden_size": 1024, "num_hidden_layers": 6}}
    assert size_of(model).name == "large"
    assert (layers_of(model), width_of(model)) == (6, 1024)
    assert size_warning(model) is None


@pytest.mark.parametrize("size", SIZES, ids=lambda size: size.name)
def test_parameters_are_those_of_such_a_model(size):
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    with torch.device("meta"):
        model = Wav2Vec2ForCTC(Wav2Vec2Config(**size.config))
    assert model.num_parameters() == pytest.approx(size.parameters, rel=0.01)
    assert nearest_size(1.1 * size.parameters) is size
