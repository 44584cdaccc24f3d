"""The process group's end."""

import torch.distributed as dist


def leave_group() -> None:
    """End the threads of gloo before Python ends, in a process that has come to its end with all others.

    One of them that still holds a tensor of the last exchange would abort the process as Python shuts down
    (github.com/pytorch/pytorch/pull/179291). Lightning leaves NCCL's group by itself, and no other. Not for a process
    that ends with an error: others may be within an exchange that never ends, and it would wait with them.
    """
    if dist.is_initialized() and dist.get_backend() == "gloo":
        dist.destroy_process_group()
