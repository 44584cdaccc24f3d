import pytest
import torch
from torch.nn import functional

from w2v_lightning.model.ctc import ctc_loss


def brute_force_nll(log_probs_FV, labels):
    """Compute CTC by summing over every path; feasible for a few frames."""
    import itertools

    total = torch.tensor(float("-inf"), dtype=torch.float64)
    for path in itertools.product(range(log_probs_FV.shape[1]), repeat=len(log_probs_FV)):
        collapsed = [token for i, token in enumerate(path) if token != 0 and (i == 0 or token != path[i - 1])]
        if collapsed == labels:
            total = torch.logaddexp(total, sum(log_probs_FV[f, token] for f, token in enumerate(path)))
    return -total


@pytest.mark.parametrize("labels", [[1], [1, 2], [1, 1], []])
def test_equals_the_sum_over_all_paths(labels):
    logits = torch.randn(1, 5, 3, dtype=torch.float64)
    loss = ctc_loss(
        logits, torch.tensor([5]), torch.tensor([labels + [0] * (4 - len(labels))]), torch.tensor([len(labels)])
    )
    expected = brute_force_nll(logits[0].log_softmax(-1), labels)
    torch.testing.assert_close(loss[0].double(), expected, rtol=1e-5, atol=1e-5)


def test_padding_of_frames_and_labels_plays_no_part():
    logits = torch.randn(1, 20, 8)
    labels = torch.tensor([[3, 4, 4]])
    alone = ctc_loss(logits, torch.tensor([20]), labels, torch.tensor([3]))
    padded_logits = torch.cat([logits, 100 * torch.randn(1, 7, 8)], dim=1)
    padded_labels = functional.pad(labels, (0, 4), value=5)
    padded = ctc_loss(padded_logits, torch.tensor([20]), padded_labels, torch.tensor([3]))
    torch.testing.assert_close(padded, alone)


def test_an_utterance_that_cannot_be_aligned_leaves_the_others_alone():
    logits = torch.randn(2, 6, 5, requires_grad=True)
    labels = torch.tensor([[1, 1, 1, 1], [2, 3, 0, 0]])  # 4 equal labels need 7 frames
    losses = ctc_loss(logits, torch.tensor([6, 6]), labels, torch.tensor([4, 2]))
    losses.sum().backward()
    assert losses[0] == 0
    assert torch.all(logits.grad[0] == 0)
    assert losses[1] > 0
    assert logits.grad.isfinite().all()
    assert logits.grad[1].abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_is_computed_in_float32_under_autocast(dtype):
    logits = (10 * torch.randn(2, 400, 32)).to(dtype)
    labels = torch.randint(1, 32, (2, 150))
    lengths = torch.tensor([400, 400]), torch.tensor([150, 150])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = ctc_loss(logits, lengths[0], labels, lengths[1])
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, ctc_loss(logits.float(), lengths[0], labels, lengths[1]), rtol=0, atol=0)
