"""Private names of other libraries: each exists, with the expected signature, and is used only through compat."""

import ast
import inspect
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from w2v_lightning.compat.torch import clone_default_store, memory_fraction

PACKAGE = Path(__file__).parents[1] / "w2v_lightning"

# (module, attribute path, parameters that are passed or None where it is not called)
NAMES = [
    ("lightning.pytorch.strategies.launchers", "_MultiProcessingLauncher.kill", ["self", "signum"]),
    ("lightning.pytorch.strategies.launchers", "_MultiProcessingLauncher", None),
    ("lightning.pytorch.strategies.launchers", "_SubprocessScriptLauncher.kill", ["self", "signum"]),
    ("lightning.pytorch.trainer.call", "_interrupt", ["trainer", "exception"]),
    ("lightning.pytorch.trainer.connectors.data_connector", "_InfiniteBarrier", None),
    ("lightning.fabric.utilities.distributed", "_InfiniteBarrier.__enter__", ["self"]),
    ("lightning.fabric.utilities.distributed", "_InfiniteBarrier.__exit__", None),
    (
        "lightning.fabric.utilities.distributed",
        "_init_dist_connection",
        ["cluster_environment", "torch_distributed_backend", "global_rank", "world_size", "kwargs"],
    ),
    ("lightning.pytorch.trainer.connectors.signal_connector", "_SignalConnector._sigterm_notifier_fn", None),
    ("lightning.pytorch.loops.training_epoch_loop", "_TrainingEpochLoop._broadcast_sigterm_tensor", ["self"]),
    (
        "lightning.pytorch.trainer.connectors.checkpoint_connector",
        "_CheckpointConnector.dump_checkpoint",
        ["self", "weights_only"],
    ),
    (
        "lightning.pytorch.trainer.connectors.checkpoint_connector",
        "_CheckpointConnector._restore_modules_and_callbacks",
        ["self", "checkpoint_path", "weights_only"],
    ),
    ("torch", "_foreach_mul_", None),
    ("torch", "nn.Module.__init__", None),
    ("torch.autograd", "Variable._execution_engine.queue_callback", None),
    ("torch.distributed.distributed_c10d", "_get_default_store", []),
    ("torch.distributed", "_DEFAULT_FIRST_BUCKET_BYTES", None),
    ("torch.distributed", "_compute_bucket_assignment_by_size", None),
    ("torch.nn.utils.parametrizations", "_WeightNorm.forward", ["self", "weight_g", "weight_v"]),
    ("torch._dynamo.config", "optimize_ddp", None),
    ("torch._dynamo.config", "recompile_limit" if torch.__version__ >= "2.6" else "cache_size_limit", None),
    ("transformers", "PreTrainedModel._init_weights", ["self", "module"]),
]

# Methods that are overridden: a library that renames one would call its own, without an error.
# (class, method, parameters, method of the library that calls it)
OVERRIDDEN = [
    ("lightning.pytorch.strategies.DDPStrategy", "_setup_model", ["self", "model"], "configure_ddp"),
    ("lightning.pytorch.strategies.DDPStrategy", "_register_ddp_hooks", ["self"], "configure_ddp"),
    (
        "lightning.pytorch.cli.LightningCLI",
        "_instantiate_trainer",
        ["self", "config", "callbacks"],
        "instantiate_trainer",
    ),
    ("jsonargparse.DefaultHelpFormatter", "_fill_text", ["self", "text", "width", "indent"], None),
    ("jsonargparse.DefaultHelpFormatter", "_expand_help", ["self", "action"], "_format_action"),
    ("sagemaker.train.ModelTrainer", "_resolve_staging_bucket", ["self"], None),
]

# Attributes that instances get: found in the source of the class that sets them.
SET_BY = [
    ("lightning.pytorch.Trainer", "_signal_connector"),
    ("lightning.pytorch.Trainer", "_checkpoint_connector"),
    ("lightning.pytorch.loops.training_epoch_loop._TrainingEpochLoop", "_batches_that_stepped"),
    ("lightning.pytorch.strategies.DDPStrategy", "_ddp_kwargs"),
    ("lightning.pytorch.strategies.DDPStrategy", "_ddp_comm_hook"),
    ("lightning.pytorch.strategies.DDPStrategy", "_ddp_comm_state"),
    ("lightning.pytorch.strategies.ModelParallelStrategy", "_data_parallel_size"),
    ("lightning.pytorch.cli.LightningCLI", "_subcommand_parsers"),
    ("lightning.pytorch.strategies.DDPStrategy", "_timeout"),
    ("torch.nn.Module", "_non_persistent_buffers_set"),
]

# Private names outside of compat, with the reason why they are there.
ELSEWHERE = {
    "cli.py": {"_instantiate_trainer", "_subcommand_parsers", "_get", "_parser"},  # within a subclass of LightningCLI
    "command_line.py": {"_actions", "_fill_text", "_expand_help"},  # within or of a subclass of jsonargparse's parser
    "strategies/smddp.py": {"_timeout"},  # subclass
    "strategies/ddp.py": {"_register_ddp_hooks", "_ddp_kwargs", "_ddp_comm_hook", "_ddp_comm_state"},  # subclass
    "strategies/fsdp2.py": {"_data_parallel_size"},  # subclass
    "sagemaker/request.py": {"_create_training_job_args"},  # the SDK is installed only where jobs are submitted
    "data/remote.py": {"_strip_protocol", "_size", "_cat_file"},  # documented for those who implement a file system
    "model/flash4.py": {"_flash_attn_fwd", "_flash_attn_bwd"},  # one pinned version, tests/model/test_flash4.py
    "runtime/signals.py": {"_exit"},  # os._exit is documented
    "data/demo.py": {"_Pointer"},  # a type of ctypes, in an annotation
}


def resolved(dotted):
    module, _, name = dotted.rpartition(".")
    return getattr(import_module(module), name)


@pytest.mark.parametrize(
    ("module", "path", "parameters"), NAMES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_private_name_is_where_it_was(module, path, parameters):
    value = import_module(module)
    for name in path.split("."):
        assert hasattr(value, name), f"{module}: {path} is gone; see w2v_lightning/compat"
        value = getattr(value, name)
    if parameters is not None:
        assert list(inspect.signature(value).parameters) == parameters


@pytest.mark.parametrize(("kind", "method", "parameters", "caller"), OVERRIDDEN)
def test_an_overridden_method_is_still_called(kind, method, parameters, caller):
    if kind.startswith("sagemaker"):
        pytest.importorskip("sagemaker.train")
    owner = resolved(kind)
    assert list(inspect.signature(getattr(owner, method)).parameters) == parameters
    if caller:
        assert f"self.{method}(" in inspect.getsource(getattr(owner, caller))


@pytest.mark.parametrize(("kind", "attribute"), SET_BY)
def test_an_attribute_of_instances_is_set_where_it_was(kind, attribute):
    sources = "".join(inspect.getsource(each) for each in resolved(kind).__mro__[:-1])
    assert f"self.{attribute}" in sources or f'"{attribute}"' in sources


def test_the_sdk_has_the_method_that_makes_requests():
    trainer = pytest.importorskip("sagemaker.train").ModelTrainer
    assert {"self", "boto3"} < set(inspect.signature(trainer._create_training_job_args).parameters)


def private_names(path):
    """(line, name) of private names of other libraries: imported, or attributes that this package does not define."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("w2v_lightning"):
            for alias in node.names:
                if is_private(alias.name):
                    yield node.lineno, alias.name
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in OWN:
            yield node.lineno, node.attr


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def defined(path):
    """Private names that a source file defines itself."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            is_own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if is_own:
                yield node.attr
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


SOURCES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent.name != "compat"]
OVERRIDES = {method for _, method, _, _ in OVERRIDDEN}
OWN = {name for path in SOURCES for name in defined(path)} - OVERRIDES - {"_data_parallel_size"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_private_names_of_libraries_go_through_compat(path):
    allowed = ELSEWHERE.get(str(path.relative_to(PACKAGE)), set())
    assert not [f"line {line}: {name}" for line, name in private_names(path) if name not in allowed]


def test_without_a_function_that_tells_it_all_memory_counts(monkeypatch):
    monkeypatch.delattr(torch.cuda, "get_per_process_memory_fraction", raising=False)
    assert memory_fraction(torch.device("cuda")) == 1.0


def test_a_store_that_cannot_be_cloned_is_connected_to_again(monkeypatch):
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    default = dist.PrefixStore("default", server)
    of_torch_2_5 = SimpleNamespace(_underlying_non_prefix_store=server, compare_set=default.compare_set)
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: of_torch_2_5)
    one, other = clone_default_store(), clone_default_store()
    one.set("key", "value")
    assert other.get("key") == b"value"
    assert not default.check(["key"])
