"""The files that a run of `fit` leaves in its trainer.default_root_dir, without training."""

import json
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

THROUGHPUT = {"audio_s_per_s": 50.0, "steps": 12, "versions": {"torch": "2.11.0"}}


def write_logs(folder: Path, version: int, wer: dict[int, float], throughput: dict[str, Any] | None = None) -> Path:
    """FOLDER/lightning_logs/version_N; `wer` by step, at 1,000 s and as many more since 1970."""
    logs = folder / "lightning_logs" / f"version_{version}"
    writer = SummaryWriter(str(logs))
    writer.add_scalar("train_loss", 3.0, 1, 1000.0)
    for step, value in wer.items():
        writer.add_scalar("val_wer", value, step, 1000.0 + step)
    writer.close()
    if throughput is not None:
        (logs / "throughput.json").write_text(json.dumps(throughput))
    return logs


def segment(started_s: int, ended_s: int, end: str) -> dict[str, Any]:
    """Of run_history.json; seconds since 1970, at most an hour."""
    moments = [f"1970-01-01T00:{s // 60:02}:{s % 60:02}.000+00:00" for s in (started_s, ended_s)]
    return {"started": moments[0], "ended": moments[1], "end": end, "first_step": 0, "last_step": 4, "log_dir": "/here"}


def write_history(folder: Path, *segments: dict[str, Any]) -> None:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "run_history.json").write_text(json.dumps(segments))
