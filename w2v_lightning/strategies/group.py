"""Orderly end of the process group."""

import torch.distributed as dist


def leave_group() -> None:
    """Stop gloo's threads before Python exits, in a process that ends together with all other ranks.

    A thread that still holds a tensor of the last collective operation would abort the process while Python shuts down
    (github.com/pytorch/pytorch/pull/179291). Lightning destroys NCCL's group by itself, but no other. Do not call this
    in a process that ends with an error: other ranks may be in a collective operation that never completes, and this
    rank would wait for them.
    """
    if dist.is_initialized() and dist.get_backend() == "gloo":
        dist.destroy_process_group()
