"""Code around flash-attn-4's kernels, with a stand-in for them; tests/gpu tests the kernels."""

import sys
from itertools import pairwise
from types import ModuleType

import pytest
import torch
from torch.nn import functional

COUNTS = [7, 1, 4]
STARTS_B = torch.tensor([0, 7, 8, 12], dtype=torch.int32)


@pytest.fixture(scope="module")
def flash4():
    """Import the module, which can register its operators only once per process."""
    stand_in = ModuleType("flash_attn.cute.interface")
    stand_in._flash_attn_fwd, stand_in._flash_attn_bwd = forward, backward
    names = ("flash_attn", "flash_attn.cute")
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setitem(sys.modules, name, ModuleType(name))
        patch.setitem(sys.modules, "flash_attn.cute.interface", stand_in)
        from w2v_lightning.model import flash4

        return flash4


def forward(query, key, value, *, return_lse, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k):
    assert return_lse
    assert cu_seqlens_q is cu_seqlens_k
    assert max_seqlen_q == max_seqlen_k == max(COUNTS)
    return attention(query, key, value, cu_seqlens_q), torch.zeros(query.shape[1], len(query)), None, None, None


def backward(query, key, value, actual, gradient, lse, *, dq, dk, dv, deterministic, cu_seqlens_q, **_):
    assert gradient.is_contiguous()
    assert not deterministic
    assert actual.shape == gradient.shape
    assert lse.shape == (query.shape[1], len(query))
    for start, end in pairwise(cu_seqlens_q.tolist()):  # autograd does not record within an operator
        q, k, v, output_gradient = (x[start:end].transpose(0, 1) for x in (query, key, value, gradient))
        share = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        share_gradient = output_gradient @ v.mT
        score_gradient = share * (share_gradient - (share * share_gradient).sum(-1, keepdim=True)) / q.shape[-1] ** 0.5
        gradients = (score_gradient @ k, score_gradient.mT @ q, share.mT @ output_gradient)
        for given, computed in zip((dq, dk, dv), gradients, strict=True):
            given[start:end] = computed.transpose(0, 1)


def attention(query, key, value, starts):
    assert starts.dtype == torch.int32
    counts = starts.diff().tolist()
    parts = zip(*(x.split(counts) for x in (query, key, value)), strict=True)
    heads_first = ([x.transpose(0, 1)[None] for x in part] for part in parts)
    return torch.cat([functional.scaled_dot_product_attention(*part)[0].transpose(0, 1) for part in heads_first])


def run(attend, projection):
    torch.manual_seed(0)
    hidden_NC = torch.randn(sum(COUNTS), 16, dtype=torch.float64, requires_grad=True)

    def function(hidden_NC):
        qkv_N3HD = functional.linear(hidden_NC, projection).unflatten(-1, (3, 2, 8))
        return attend(qkv_N3HD, STARTS_B, max(COUNTS)).square()

    actual_NHD = function(hidden_NC)
    return actual_NHD, *torch.autograd.grad(actual_NHD.sum(), (hidden_NC, projection))


def test_gradients_are_those_of_attention_within_utterances(flash4):
    projection = torch.randn(48, 16, dtype=torch.float64, requires_grad=True)
    expected = run(lambda qkv_N3HD, starts_B, _: attention(*qkv_N3HD.unbind(1), starts_B), projection)
    for ours, exact in zip(run(flash4.flash4, projection), expected, strict=True):
        torch.testing.assert_close(ours, exact)


def test_torch_can_trace_it(flash4):
    qkv_N3HD = torch.randn(sum(COUNTS), 3, 2, 8, requires_grad=True)
    torch.library.opcheck(flash4._flash4, (qkv_N3HD, STARTS_B, max(COUNTS)))


@pytest.mark.slow
def test_it_is_no_break_in_a_compiled_function(flash4):
    projection = torch.randn(48, 16, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(flash4.flash4, dynamic=True, fullgraph=True)
    for ours, exact in zip(run(compiled, projection), run(flash4.flash4, projection), strict=True):
        torch.testing.assert_close(ours, exact)
