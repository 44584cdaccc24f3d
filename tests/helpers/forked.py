"""Processes that are forked from a server which has imported what a run needs: they start at once.

A Python that imports torch, Lightning and transformers has used six seconds of a core before it does anything.
"""

import multiprocessing
import os
import socket
import sys

LIMIT_S = 240


def start(folder, target, *args, ranks=1, environments=None, **options):
    """The processes of `target(*args, **options)`, with what torchrun sets where there are several.

    Or one for each of `environments`. Their output goes to FOLDER/rankRANK.log; a number that `target` returns is their
    status.
    """
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["w2v_lightning.cli", "torch.utils.tensorboard"])
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)  # of the server
    processes = [
        context.Process(target=_run, args=(target, args, options, dict(os.environ) | own, folder / f"rank{rank}.log"))
        for rank, own in enumerate(environments or torchrun(ranks))
    ]
    for process in processes:
        process.start()
    return processes


def torchrun(ranks):
    """The environment of each rank; of a process alone, nothing."""
    if ranks == 1:
        return [{}]
    shared = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "GROUP_RANK": "0", "MASTER_PORT": free_port()}
    shared |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "none"}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


def _run(target, args, options, environment, log):
    with log.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    os.environ.clear()  # the server has that of the first test
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # of loader workers, as it would be without the server
    status = target(*args, **options)
    sys.exit(status if isinstance(status, int) else 0)


def ended(processes, folder, limit_s=LIMIT_S):
    """Exit statuses; what has not ended in time is killed."""
    for process in processes:
        process.join(limit_s)
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
    assert not late, logs(folder)
    return [process.exitcode for process in processes]


def logs(folder, rank="*"):
    return "\n".join(path.read_text() for path in sorted(folder.glob(f"rank{rank}.log")))
