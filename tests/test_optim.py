import math

import pytest
import torch
from torch import nn

from w2v_lightning.errors import InputError
from w2v_lightning.optim import parameter_groups, tri_stage


def test_tri_stage_at_every_edge_of_its_phases():
    factor = tri_stage(80_000, warmup=0.1, hold=0.4, final_lr_scale=0.05)
    assert factor(0) == 0.01
    assert factor(4_000) == pytest.approx(0.505)
    assert factor(7_999) < 1
    assert factor(8_000) == factor(39_999) == factor(40_000) == 1
    assert factor(40_001) < 1
    assert factor(60_000) == pytest.approx(math.sqrt(0.05))
    assert factor(80_000) == pytest.approx(0.05)
    assert factor(1_000_000) == factor(80_000)


@pytest.mark.parametrize(("warmup", "hold"), [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (0.5, 0.5), (0.3, 0.0)])
@pytest.mark.parametrize("num_updates", [1, 2, 3, 7, 100])
def test_tri_stage_holds_for_any_phases(warmup, hold, num_updates):
    factors = [tri_stage(num_updates, warmup, hold)(update) for update in range(num_updates + 3)]
    assert all(0.01 <= factor <= 1 for factor in factors)
    top = factors.index(max(factors))
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)


@pytest.mark.parametrize("arguments", [(0.6, 0.6, 0.05), (-0.1, 0.4, 0.05), (0.1, 0.4, 0.0), (0.1, 0.4, 1.5)])
def test_an_impossible_schedule_is_refused(arguments):
    with pytest.raises(InputError, match=r"model\."):
        tri_stage(100, *arguments)


def test_weight_decay_spares_biases_norms_and_frozen_parameters():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[2].requires_grad_(False)
    decayed, spared = parameter_groups(model, 0.1)
    assert decayed == {"params": [model[0].weight], "weight_decay": 0.1}
    assert [id(p) for p in spared["params"]] == [id(p) for p in (model[0].bias, model[1].weight, model[1].bias)]
    assert spared["weight_decay"] == 0
    torch.optim.AdamW([decayed, spared])
