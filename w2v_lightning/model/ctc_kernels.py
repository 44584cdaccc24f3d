"""CTC as two Triton kernels, which never wait: torch's own copies counts to the GPU and waits for each copy.

The trellis of an utterance with U labels has U + 1 blanks and U labels between them, at each frame:

    blank i from   blank i, label i - 1
    label i from   label i, blank i, and label i - 1 if that is another token

Forward variables (alpha) sum over the paths that end in a state, its frame included, backward variables over those that
begin in it. Read from the end the trellis has the same form, so both come from the same code, side by side. What passes
through a state is then alpha + beta - its own log-probability (Graves et al. 2006, section 4).

Logarithms of paths grow with the frames, and float32 becomes coarse for them: after 1,750 frames torch's gradient is
0.4 % off. Here they are float64, of which adding and comparing are cheap. Exponentials and logarithms, whose results
are small, are float32, and so is what is kept of each frame, less a level of about its largest. Nothing is summed by
atomics: the same input gives the same bits.

B utterances, F frames, V tokens, U labels; all numbers are logarithms.
"""

import torch
import triton
from torch import Tensor
from triton import language as tl

FRAMES, LABELS = 16, 32  # of a tile of the gradient
IMPOSSIBLE = tl.constexpr(float("-inf"))
LEVELLED = tl.constexpr(8)  # frames from one level to the next


@triton.jit
def _log_add(x, y):
    """Of float64."""
    most = tl.maximum(x, y)
    most = tl.where(most == IMPOSSIBLE, 0.0, most)
    return most + tl.log(tl.exp((x - most).to(tl.float32)) + tl.exp((y - most).to(tl.float32)))


@triton.jit(do_not_specialize=["most_frames", "most_labels"])
def _recursion(
    log_probs, labels, counts_of_frames, counts_of_labels, states, levels, losses, most_frames, num_tokens, most_labels,
    blank, KEEPS: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """One utterance from its beginning, or, in the second half of the grid, from its end."""
    utterance, is_backward = tl.program_id(0).to(tl.int64), tl.program_id(1)
    num_frames = tl.load(counts_of_frames + utterance).to(tl.int32)
    num_labels = tl.load(counts_of_labels + utterance).to(tl.int32)
    i = tl.arange(0, STATES)
    label_at = tl.where(is_backward == 1, num_labels - 1 - i, i)
    blank_at = tl.where(is_backward == 1, num_labels - i, i)
    is_label, is_blank = i < num_labels, i <= num_labels
    label = tl.load(labels + utterance * most_labels + label_at, mask=is_label, other=blank)
    one_before = tl.maximum(i - 1, 0)
    skips = (i > 0) & (label != tl.gather(label, one_before, 0))

    frame, step = tl.where(is_backward == 1, num_frames - 1, 0), tl.where(is_backward == 1, -1, 1)
    row = log_probs + (utterance * most_frames + frame) * num_tokens
    kept_row = (is_backward * tl.num_programs(0) + utterance) * most_frames + frame
    kept, kept_level = states + kept_row * (2 * most_labels + 1), levels + kept_row
    of_labels = tl.full((STATES,), IMPOSSIBLE, tl.float64)
    of_blanks = tl.where(i == 0, 0.0, of_labels)  # before the first frame: as if in the first blank
    level = tl.full((), 0.0, tl.float64)
    blank_log_prob = tl.load(row + blank, mask=num_frames > 0, other=0.0)
    label_log_prob = tl.load(row + label, mask=is_label & (num_frames > 0), other=0.0)
    number = 1
    while number <= num_frames:
        # Of the next frame: loading takes as long as a step.
        row += step * num_tokens
        next_blank_log_prob = tl.load(row + blank, mask=number < num_frames, other=0.0)
        next_label_log_prob = tl.load(row + label, mask=is_label & (number < num_frames), other=0.0)
        label_before = tl.where(i > 0, tl.gather(of_labels, one_before, 0), IMPOSSIBLE)
        into_labels = _log_add(of_labels, of_blanks)
        into_labels = _log_add(into_labels, tl.where(skips, label_before, IMPOSSIBLE))
        of_blanks = _log_add(of_blanks, label_before) + blank_log_prob
        of_labels = tl.where(is_label, into_labels + label_log_prob, IMPOSSIBLE)
        if number % LEVELLED == 0:
            most = tl.maximum(tl.max(of_blanks, 0), tl.max(of_labels, 0))
            level = tl.where(most == IMPOSSIBLE, 0.0, most)
        if KEEPS:
            tl.store(kept_level, level)
            kept_level += step
            tl.store(kept + blank_at, (of_blanks - level).to(tl.float32), mask=is_blank)
            tl.store(kept + most_labels + 1 + label_at, (of_labels - level).to(tl.float32), mask=is_label)
            kept += step * (2 * most_labels + 1)
        blank_log_prob, label_log_prob = next_blank_log_prob, next_label_log_prob
        number += 1
    if is_backward == 0:
        last_blank = tl.sum(tl.where(i == num_labels, of_blanks, 0.0), 0)
        last_label = tl.sum(tl.where(i == num_labels - 1, of_labels, 0.0), 0)
        last_label = tl.where(num_labels > 0, last_label, IMPOSSIBLE)
        tl.store(losses + utterance, -_log_add(last_blank, last_label))


@triton.jit(do_not_specialize=["most_frames", "most_labels"])
def _gradient(
    log_probs, labels, counts_of_frames, counts_of_labels, states, levels, losses, most_frames, num_tokens, most_labels,
    blank, gradient, FRAMES: tl.constexpr, LABELS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Of the loss by the logits: each token's probability, less the share of the paths that go through it."""
    utterance = tl.program_id(1).to(tl.int64)
    num_frames = tl.load(counts_of_frames + utterance).to(tl.int32)
    num_labels = tl.load(counts_of_labels + utterance).to(tl.int32)
    loss = tl.load(losses + utterance)
    frame, token = tl.program_id(0) * FRAMES + tl.arange(0, FRAMES), tl.arange(0, TOKENS)
    is_frame, is_token = frame < num_frames, token < num_tokens
    row = log_probs + (utterance * most_frames + frame) * num_tokens
    pitch = 2 * most_labels + 1
    forward = states + (utterance * most_frames + frame) * pitch
    backward = forward + tl.num_programs(1) * most_frames.to(tl.int64) * pitch
    kept_level = levels + utterance * most_frames + frame
    level = tl.load(kept_level, mask=is_frame, other=0.0)
    level += tl.load(kept_level + tl.num_programs(1) * most_frames.to(tl.int64), mask=is_frame, other=0.0)
    level = (level + loss).to(tl.float32)
    of_token = tl.zeros((FRAMES, TOKENS), tl.float32)
    of_blank = tl.zeros((FRAMES,), tl.float32)
    blank_log_prob = tl.load(row + blank, mask=is_frame, other=0.0)
    first = 0
    while first <= num_labels:
        i = first + tl.arange(0, LABELS)
        label = tl.load(labels + utterance * most_labels + i, mask=i < num_labels, other=-1).to(tl.int32)
        is_state = is_frame[:, None] & (i <= num_labels)[None, :]
        alpha = tl.load(forward[:, None] + i[None, :], mask=is_state, other=IMPOSSIBLE)
        beta = tl.load(backward[:, None] + i[None, :], mask=is_state, other=IMPOSSIBLE)
        of_blank += tl.sum(tl.exp(alpha + beta - blank_log_prob[:, None] + level[:, None]), 1)
        is_state = is_frame[:, None] & (i < num_labels)[None, :]
        at = most_labels + 1 + i[None, :]
        alpha = tl.load(forward[:, None] + at, mask=is_state, other=IMPOSSIBLE)
        beta = tl.load(backward[:, None] + at, mask=is_state, other=IMPOSSIBLE)
        log_prob = tl.load(row[:, None] + label[None, :], mask=is_state, other=0.0)
        passing = tl.exp(alpha + beta - log_prob + level[:, None])
        is_label = (label[:, None] == token[None, :]).to(tl.float32)
        of_token = tl.dot(passing, is_label, of_token, input_precision="ieee")
        first += LABELS
    of_token += tl.where(token == blank, 1.0, 0.0)[None, :] * of_blank[:, None]
    at = frame[:, None] * num_tokens + token[None, :]
    mask = (frame < most_frames)[:, None] & is_token[None, :]
    prob = tl.exp(tl.load(log_probs + utterance * most_frames * num_tokens + at, mask=mask, other=IMPOSSIBLE))
    value = tl.where(loss == float("inf"), 0.0, tl.where(is_frame[:, None], prob - of_token, 0.0))
    tl.store(gradient + utterance * most_frames * num_tokens + at, value, mask=mask)


def ctc(
    log_probs_BFV: Tensor,
    labels_BU: Tensor,
    num_frames_B: Tensor,
    num_labels_B: Tensor,
    blank_id: int,
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """Losses (B,) in float64, infinite where labels cannot be aligned, and their gradient by the logits (B, F, V) in
    float32, zero there.

    All on one GPU, `log_probs_BFV` in float32 and contiguous. `Speed.fuses_ctc` knows how many tokens and labels fit.
    """
    num_utterances, most_frames, num_tokens = log_probs_BFV.shape
    most_labels = labels_BU.shape[1]
    new, exact = log_probs_BFV.new_empty, torch.float64
    losses_B, num_kept = new(num_utterances, dtype=exact), 2 * with_gradient
    states = new(num_kept, num_utterances, most_frames, 2 * most_labels + 1)
    levels = new(num_kept, num_utterances, most_frames, dtype=exact)
    of_batch = log_probs_BFV, labels_BU.contiguous(), num_frames_B, num_labels_B, states, levels, losses_B
    sizes = most_frames, num_tokens, most_labels, blank_id
    width = max(128, triton.next_power_of_2(most_labels + 1))
    _recursion[num_utterances, 1 + with_gradient](
        *of_batch, *sizes, KEEPS=with_gradient, STATES=width, num_warps=min(8, width // 64)
    )
    if not with_gradient:
        return losses_B, None
    gradient_BFV = torch.empty_like(log_probs_BFV)
    _gradient[triton.cdiv(most_frames, FRAMES), num_utterances](
        *of_batch, *sizes, gradient_BFV, FRAMES=FRAMES, LABELS=LABELS,
        TOKENS=max(16, triton.next_power_of_2(num_tokens)), num_warps=4 if num_tokens <= 64 else 8,
    )  # fmt: skip
    return losses_B, gradient_BFV
