"""Final files of a run: manifest.jsonl, one manifest per split, and stats.json, assembled from the parts."""

import json
import shutil
from collections import Counter, defaultdict
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from w2v_lightning import __version__
from w2v_lightning.errors import InputError, listed
from w2v_lightning.prepare import validation
from w2v_lightning.prepare.convert import TOO_LONG, TOO_SHORT
from w2v_lightning.prepare.identity import DUPLICATE
from w2v_lightning.prepare.parts import lines_of, read_headers
from w2v_lightning.prepare.statistics import Statistics

MAX_EXAMPLES = 3


def assemble(out: Path, request: dict[str, Any], reasons: Counter[str]) -> dict[str, Path]:
    """Write the files that `publish` will move, and return them by name, in the order in which readers may see them.

    Raises:
        InputError: no utterance is left.
    """
    folder = out / ".parts"
    rejected = {"rejected.jsonl": folder / "rejected.jsonl"} if reasons else {}
    if next(read_headers(folder), None) is None:
        publish(out, rejected)
        problem = f"{_counted(reasons)} (listed in {out / 'rejected.jsonl'})" if reasons else "they are empty"
        sources = listed([source["path"] for source in request["sources"]])
        raise InputError(f"No utterance in the sources is usable: {problem}. Sources: {sources}.")
    percentage, parts = request["options"]["validation"], folder
    outcome: dict[str, Any] = {}
    if percentage is not None:
        parts, outcome = validation.hold_out(folder, percentage)
    paths_of_split: dict[str, list[Path]] = defaultdict(list)
    statistics_of_split: dict[str, Statistics] = defaultdict(Statistics)
    for path, header in read_headers(parts):
        paths_of_split[header["split"]].append(path)
        statistics_of_split[header["split"]].merge(Statistics.from_json(header["statistics"]))
    manifests = _write_manifests(folder, paths_of_split)
    stats = _stats(request, statistics_of_split, reasons) | ({"validation": outcome} if outcome else {})
    (folder / "stats.json").write_text(json.dumps(stats, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return rejected | manifests | {"stats.json": folder / "stats.json"}


def publish(out: Path, files: dict[str, Path]) -> None:
    """Move the files into the output folder; stats.json comes last and marks the run as finished."""
    if "rejected.jsonl" not in files:
        (out / "rejected.jsonl").unlink(missing_ok=True)
    for name, path in files.items():
        path.replace(out / name)
    remove_parts(out)


def remove_parts(out: Path) -> None:
    """Delete the folder that only an interrupted run needs."""
    shutil.rmtree(out / ".parts", ignore_errors=True)


def summary(out: Path) -> str:
    """Return a line on the corpus, and one each on its splits, --validation and what is left out, if there is any."""
    stats = json.loads((out / "stats.json").read_text(encoding="utf-8"))
    num_shards, reasons = len(list((out / "shards").glob("*.tar"))), stats["rejected"]
    sizes = [f"{stats['utterances']:,} utterances", f"{stats['hours']:.2f} h", f"{stats['speakers']:,} speakers"]
    line = f"{out / 'manifest.jsonl'}: {', '.join(sizes)}{f', in {num_shards:,} shards' if num_shards else ''}."
    lines = [line]
    if splits := stats["splits"]:
        counts = ", ".join(f"{split} {statistics['utterances']:,}" for split, statistics in splits.items())
        lines.append(f"Utterances per split: {counts}.")
    if outcome := stats.get("validation"):
        lines.append(validation.described(outcome))
    if reasons:
        lines.append(f"{sum(reasons.values()):,} left out, listed in {out / 'rejected.jsonl'}: {_counted(reasons)}.")
        lines += _examples(out / "rejected.jsonl")
    return "\n".join(lines)


def _examples(rejected: Path) -> list[str]:
    """Return what is wrong with the first utterances that are left out for a reason that needs a detail."""
    with rejected.open(encoding="utf-8") as file:
        details = (row["detail"] for row in map(json.loads, file) if row.get("detail"))
        return [f"  {detail}" for detail in islice(details, MAX_EXAMPLES)]


def warning(out: Path, max_rejected: float) -> str:
    """Return a line on what is left out if that is more than `max_rejected` percent of the utterances, else "".

    Duplicates and the limits of duration do not count, because they are left out on purpose; the rest may be a fault
    of the corpus, or of how it was read.
    """
    stats = json.loads((out / "stats.json").read_text(encoding="utf-8"))
    on_purpose = (DUPLICATE, TOO_SHORT, TOO_LONG)
    lost = {reason: n for reason, n in stats["rejected"].items() if not reason.startswith(on_purpose)}
    num_lost = sum(lost.values())
    num_all = num_lost + stats["utterances"]
    if 100 * num_lost <= max_rejected * num_all:
        return ""
    reason = max(lost, key=lambda reason: lost[reason])
    return (
        f"WARNING: {100 * num_lost / num_all:.1f} % of the utterances are left out ({num_lost:,} of {num_all:,}),"
        f" most often for: {reason.rstrip('.')}. That is above --max_rejected {max_rejected:g}%. Correct what"
        " rejected.jsonl lists, or raise --max_rejected."
    )


def _write_manifests(folder: Path, paths_of_split: dict[str, list[Path]]) -> dict[str, Path]:
    """Write a manifest for each split that has a name, and manifest.jsonl of all splits."""
    files = {f"{split}.jsonl": folder / f"{split}.jsonl" for split in sorted(paths_of_split) if split}
    files["manifest.jsonl"] = folder / "manifest.jsonl"
    with files["manifest.jsonl"].open("w", encoding="utf-8") as whole, ExitStack() as stack:
        for split, paths in sorted(paths_of_split.items()):
            targets = [whole]
            if split:
                targets.append(stack.enter_context(files[f"{split}.jsonl"].open("w", encoding="utf-8")))
            for line in (line for path in paths for line in lines_of(path)):
                for target in targets:
                    target.write(line)
    return files


def _stats(
    request: dict[str, Any], statistics_of_split: dict[str, Statistics], reasons: Counter[str]
) -> dict[str, Any]:
    whole = Statistics()
    for _, statistics in sorted(statistics_of_split.items()):
        whole.merge(statistics)
    splits = {split: s.summary() for split, s in sorted(statistics_of_split.items()) if split}
    run = {"w2v_lightning": __version__, **request}
    return run | whole.summary() | {"splits": splits, "rejected": dict(sorted(reasons.items()))}


def _counted(reasons: dict[str, int]) -> str:
    most_common = sorted(reasons.items(), key=lambda item: -item[1])
    return ", ".join(f"{count:,} x {reason.rstrip('.')}" for reason, count in most_common)
