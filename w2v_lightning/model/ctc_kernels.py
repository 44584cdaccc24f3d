"""CTC as two Triton kernels that never wait for the device; torch's CTC waits for each copy of its counts to the GPU.

The trellis of an utterance with U labels has U + 1 blanks and U labels between them, at each frame:

    blank i from   blank i, label i - 1
    label i from   label i, blank i, and label i - 1 if that is another token

Forward variables (alpha) sum over the paths that end in a state, including its frame; backward variables (beta) sum
over the paths that begin in it. Read from the end, the trellis has the same form, so the same code computes both in
parallel. The paths through a state have alpha + beta - the state's own log-probability (Graves et al. 2006, section 4).

Path log-probabilities grow with the number of frames until float32 is too coarse: after 1,750 frames torch's gradient
is 0.4 % off. They are float64 here, where additions and comparisons are cheap. Exponentials and logarithms, whose
results are small, are float32. The variables stored per frame are float32 too, relative to a level near their maximum.
Sums do not use atomics: the same input gives the same bits.

B utterances, F frames, V tokens, U labels; all numbers are logarithms.
"""

import torch
import triton
from torch import Tensor
from triton import language as tl

FRAMES, LABELS = 16, 32  # tile size of the gradient kernel
IMPOSSIBLE = tl.constexpr(float("-inf"))
LEVELLED = tl.constexpr(8)  # frames between two updates of the level

# Kernels have no type annotations: Triton interprets those of their parameters.


@triton.jit
def _log_add(x, y):  # type: ignore[no-untyped-def]
    """Return log(e^x + e^y) in float64."""
    highest = tl.maximum(x, y)
    highest = tl.where(highest == IMPOSSIBLE, 0.0, highest)
    return highest + tl.log(tl.exp((x - highest).to(tl.float32)) + tl.exp((y - highest).to(tl.float32)))


@triton.jit(do_not_specialize=["max_frames", "max_labels"])
def _recursion(  # type: ignore[no-untyped-def]
    log_probs, labels, counts_of_frames, counts_of_labels, states, levels, losses, max_frames, num_tokens, max_labels,
    blank, KEEPS: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """Run the recursion over one utterance: from its beginning, or, in the second half of the grid, from its end."""
    utterance, is_backward = tl.program_id(0).to(tl.int64), tl.program_id(1)
    num_frames = tl.load(counts_of_frames + utterance).to(tl.int32)
    num_labels = tl.load(counts_of_labels + utterance).to(tl.int32)
    i = tl.arange(0, STATES)
    label_at = tl.where(is_backward == 1, num_labels - 1 - i, i)
    blank_at = tl.where(is_backward == 1, num_labels - i, i)
    is_label, is_blank = i < num_labels, i <= num_labels
    label = tl.load(labels + utterance * max_labels + label_at, mask=is_label, other=blank)
    previous = tl.maximum(i - 1, 0)
    skips = (i > 0) & (label != tl.gather(label, previous, 0))

    frame, step = tl.where(is_backward == 1, num_frames - 1, 0), tl.where(is_backward == 1, -1, 1)
    row = log_probs + (utterance * max_frames + frame) * num_tokens
    kept_row = (is_backward * tl.num_programs(0) + utterance) * max_frames + frame
    kept, kept_level = states + kept_row * (2 * max_labels + 1), levels + kept_row
    label_paths = tl.full((STATES,), IMPOSSIBLE, tl.float64)
    blank_paths = tl.where(i == 0, 0.0, label_paths)  # before the first frame, the only state is the first blank
    level = tl.full((), 0.0, tl.float64)
    blank_log_prob = tl.load(row + blank, mask=num_frames > 0, other=0.0)
    label_log_prob = tl.load(row + label, mask=is_label & (num_frames > 0), other=0.0)
    number = 1
    while number <= num_frames:
        # Load the next frame's values already here: loading takes as long as a step.
        row += step * num_tokens
        next_blank_log_prob = tl.load(row + blank, mask=number < num_frames, other=0.0)
        next_label_log_prob = tl.load(row + label, mask=is_label & (number < num_frames), other=0.0)
        label_before = tl.where(i > 0, tl.gather(label_paths, previous, 0), IMPOSSIBLE)
        into_labels = _log_add(label_paths, blank_paths)
        into_labels = _log_add(into_labels, tl.where(skips, label_before, IMPOSSIBLE))
        blank_paths = _log_add(blank_paths, label_before) + blank_log_prob
        label_paths = tl.where(is_label, into_labels + label_log_prob, IMPOSSIBLE)
        if number % LEVELLED == 0:
            highest = tl.maximum(tl.max(blank_paths, 0), tl.max(label_paths, 0))
            level = tl.where(highest == IMPOSSIBLE, 0.0, highest)
        if KEEPS:
            tl.store(kept_level, level)
            kept_level += step
            tl.store(kept + blank_at, (blank_paths - level).to(tl.float32), mask=is_blank)
            tl.store(kept + max_labels + 1 + label_at, (label_paths - level).to(tl.float32), mask=is_label)
            kept += step * (2 * max_labels + 1)
        blank_log_prob, label_log_prob = next_blank_log_prob, next_label_log_prob
        number += 1
    if is_backward == 0:
        last_blank = tl.sum(tl.where(i == num_labels, blank_paths, 0.0), 0)
        last_label = tl.sum(tl.where(i == num_labels - 1, label_paths, 0.0), 0)
        last_label = tl.where(num_labels > 0, last_label, IMPOSSIBLE)
        tl.store(losses + utterance, -_log_add(last_blank, last_label))


@triton.jit(do_not_specialize=["max_frames", "max_labels"])
def _gradient(  # type: ignore[no-untyped-def]
    log_probs, labels, counts_of_frames, counts_of_labels, states, levels, losses, max_frames, num_tokens, max_labels,
    blank, gradient, FRAMES: tl.constexpr, LABELS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Gradient of the loss by the logits: each token's probability minus the share of the paths through it."""
    utterance = tl.program_id(1).to(tl.int64)
    num_frames = tl.load(counts_of_frames + utterance).to(tl.int32)
    num_labels = tl.load(counts_of_labels + utterance).to(tl.int32)
    loss = tl.load(losses + utterance)
    frame, token = tl.program_id(0) * FRAMES + tl.arange(0, FRAMES), tl.arange(0, TOKENS)
    is_frame, is_token = frame < num_frames, token < num_tokens
    row = log_probs + (utterance * max_frames + frame) * num_tokens
    pitch = 2 * max_labels + 1
    forward = states + (utterance * max_frames + frame) * pitch
    backward = forward + tl.num_programs(1) * max_frames.to(tl.int64) * pitch
    kept_level = levels + utterance * max_frames + frame
    level = tl.load(kept_level, mask=is_frame, other=0.0)
    level += tl.load(kept_level + tl.num_programs(1) * max_frames.to(tl.int64), mask=is_frame, other=0.0)
    level = (level + loss).to(tl.float32)
    token_share = tl.zeros((FRAMES, TOKENS), tl.float32)
    blank_share = tl.zeros((FRAMES,), tl.float32)
    blank_log_prob = tl.load(row + blank, mask=is_frame, other=0.0)
    first = 0
    while first <= num_labels:
        i = first + tl.arange(0, LABELS)
        label = tl.load(labels + utterance * max_labels + i, mask=i < num_labels, other=-1).to(tl.int32)
        is_state = is_frame[:, None] & (i <= num_labels)[None, :]
        alpha = tl.load(forward[:, None] + i[None, :], mask=is_state, other=IMPOSSIBLE)
        beta = tl.load(backward[:, None] + i[None, :], mask=is_state, other=IMPOSSIBLE)
        blank_share += tl.sum(tl.exp(alpha + beta - blank_log_prob[:, None] + level[:, None]), 1)
        is_state = is_frame[:, None] & (i < num_labels)[None, :]
        at = max_labels + 1 + i[None, :]
        alpha = tl.load(forward[:, None] + at, mask=is_state, other=IMPOSSIBLE)
        beta = tl.load(backward[:, None] + at, mask=is_state, other=IMPOSSIBLE)
        log_prob = tl.load(row[:, None] + label[None, :], mask=is_state, other=0.0)
        passing = tl.exp(alpha + beta - log_prob + level[:, None])
        is_label = (label[:, None] == token[None, :]).to(tl.float32)
        token_share = tl.dot(passing, is_label, token_share, input_precision="ieee")
        first += LABELS
    token_share += tl.where(token == blank, 1.0, 0.0)[None, :] * blank_share[:, None]
    at = frame[:, None] * num_tokens + token[None, :]
    mask = (frame < max_frames)[:, None] & is_token[None, :]
    prob = tl.exp(tl.load(log_probs + utterance * max_frames * num_tokens + at, mask=mask, other=IMPOSSIBLE))
    value = tl.where(loss == float("inf"), 0.0, tl.where(is_frame[:, None], prob - token_share, 0.0))
    tl.store(gradient + utterance * max_frames * num_tokens + at, value, mask=mask)


def ctc(
    log_probs_BFV: Tensor,
    labels_BU: Tensor,
    num_frames_B: Tensor,
    num_labels_B: Tensor,
    blank_id: int,
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return the losses (B,) in float64 and, `with_gradient`, their gradient by the logits (B, F, V) in float32.

    Where labels cannot be aligned, the loss is infinite and the gradient zero. All tensors are on one GPU,
    `log_probs_BFV` is float32 and contiguous. `Speed.fuses_ctc` checks that tokens and labels fit.
    """
    num_utterances, max_frames, num_tokens = log_probs_BFV.shape
    max_labels = labels_BU.shape[1]
    new, exact = log_probs_BFV.new_empty, torch.float64
    losses_B, num_kept = new(num_utterances, dtype=exact), 2 * with_gradient
    states = new(num_kept, num_utterances, max_frames, 2 * max_labels + 1)
    levels = new(num_kept, num_utterances, max_frames, dtype=exact)
    tensors = log_probs_BFV, labels_BU.contiguous(), num_frames_B, num_labels_B, states, levels, losses_B
    sizes = max_frames, num_tokens, max_labels, blank_id
    width = max(128, triton.next_power_of_2(max_labels + 1))
    _recursion[num_utterances, 1 + with_gradient](
        *tensors, *sizes, KEEPS=with_gradient, STATES=width, num_warps=min(8, width // 64)
    )
    if not with_gradient:
        return losses_B, None
    gradient_BFV = torch.empty_like(log_probs_BFV)
    _gradient[triton.cdiv(max_frames, FRAMES), num_utterances](
        *tensors, *sizes, gradient_BFV, FRAMES=FRAMES, LABELS=LABELS,
        TOKENS=max(16, triton.next_power_of_2(num_tokens)), num_warps=4 if num_tokens <= 64 else 8,
    )  # fmt: skip
    return losses_B, gradient_BFV
