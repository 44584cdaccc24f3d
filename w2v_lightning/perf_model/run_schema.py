"""Schema of run.json and throughput.json, as reports and models need them; keys that are not listed are ignored."""

from typing import Annotated, Any, TypedDict

from w2v_lightning.runtime.schema import Rule

Amount = Annotated[float, Rule("a number of at least 0", lambda value: value >= 0)]
Count = Annotated[int, Rule("a whole number of at least 0", lambda value: value >= 0)]
Positive = Annotated[int, Rule("a whole number above 0", lambda value: value > 0)]


class Cell(TypedDict):
    """Cell of the study, see `study.cells.Cell`."""

    name: str
    hardware: str
    count: Positive
    devices_per_host: Positive
    is_spot: bool
    precision: str
    options: dict[str, Any]
    repetition: int
    link: str
    link_bytes_per_s: Amount | None
    link_delay_ms: Amount | None
    is_emulated: bool
    storage: str
    storage_bytes_per_s: Amount | None
    threads: Positive | None


class Workload(TypedDict, total=False):
    """Figures of the plan; empty for a data module of another package."""

    micro_batches_per_step: Positive
    audio_s_per_epoch: Amount
    steps_per_epoch: Count | None
    utterances_per_epoch: Count | None
    batch_seconds: Amount | None
    device_seconds: Amount | None
    loader_workers: Count
    parameters: Positive
    gradient_bytes: Count
    gradient_buckets: Count


class Host(TypedDict):
    """Machine of one rank."""

    hosts: Positive
    devices_per_host: Positive
    cores: Positive
    threads: Positive | None


class Throughput(TypedDict, total=False):
    """Content of throughput.json (telemetry/throughput.py); empty if training never began."""

    workload: Workload
    host: Host
    windows: list[dict[str, Amount]]
    device: str
    precision: str
    backend: str | None
    world_size: Positive
    steps: Count
    audio_hours: Amount
    train_seconds: Amount
    startup_s: Amount | None
    flops_per_audio_s: Amount | None
    matrix_flops_per_s: Amount | None
    gpu_utilisation: Amount | None
    gpu_memory_gib: Amount | None
    peak_memory_gib: Amount | None
    energy_wh_per_audio_hour: Amount | None
    data_wait_share: Amount | None
    padding_share: Amount | None
    all_reduce: dict[str, Amount | None] | None
    communication: dict[str, Amount | list[Amount] | None] | None
    validation: dict[str, Amount | None]
    versions: dict[str, str | None]


class Validation(TypedDict):
    """WER of one validation."""

    step: Amount
    elapsed_s: Amount
    wer: Amount


class Price(TypedDict):
    """Price of an instance."""

    usd_per_hour: Amount
    date: str
    source: str
    region: str


class RunFile(TypedDict):
    """Content of run.json, see `runs.Run`."""

    name: str
    cell: Cell
    where: str
    date: str
    environment: dict[str, Any]
    throughput: Throughput
    wer: list[Validation]
    segments: list[dict[str, Any]]
    interruptions: Count
    training_s: Amount
    billable_s: Amount | None
    price: Price | None
    outcome: str
