"""Stands in for AWS's library: a backend "smddp" on top of gloo, which refuses what SMDDP refuses."""

import functools
import inspect

import torch.distributed as dist

dist.Backend.register_backend("smddp", dist.ProcessGroupGloo, devices=["cpu", "cuda"])


def _refuse(name, is_refused, message):
    """Let torch.distributed's function `name` raise where its arguments are such."""
    real = getattr(dist, name)

    @functools.wraps(real)
    def guarded(*args, **kwargs):
        given = inspect.signature(real).bind(*args, **kwargs).arguments
        uses_smddp = given.get("backend") == "smddp" or (dist.is_initialized() and dist.get_backend() == "smddp")
        if uses_smddp and is_refused(given):
            raise RuntimeError(message)
        return real(*args, **kwargs)

    setattr(dist, name, guarded)


_refuse("all_reduce", lambda given: given.get("op") == dist.ReduceOp.AVG, "SMDDP does not support: ReduceOp")
_refuse("new_group", lambda given: True, "SMDDP does not support: new_group")
_refuse("barrier", lambda given: given.get("device_ids"), "SMDDP does not support: device_ids")
_refuse("init_process_group", lambda given: given.get("device_id"), "SMDDP does not support: device_id")
