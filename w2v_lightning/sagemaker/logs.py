"""Command `logs`: the lines that all hosts of a job print, in order of time."""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from w2v_lightning.command_line import Parser, parse, parser_of
from w2v_lightning.sagemaker import aws_session
from w2v_lightning.sagemaker.advice import end_of
from w2v_lightning.sagemaker.aws_errors import explain_aws_errors
from w2v_lightning.sagemaker.training_job import TrainingJob, describe

GROUP = "/aws/sagemaker/TrainingJobs"
POLL_S = 5.0
# Lines reach the service some seconds after they were printed, also the last ones of a job that has ended.
SETTLE_S = 15.0


@dataclass(frozen=True)
class LogsOptions:
    """Print what a job has logged; with --follow, the exit status is 1 unless the job completes.

    Args:
        name: name of a job, or of a run (its newest job).
        follow: continuous output until the job ends.
        region: AWS region; default: AWS_REGION or that of the AWS profile.
    """

    name: str
    follow: bool = False
    region: str | None = None


@explain_aws_errors()
def main(args: Sequence[str]) -> int:
    """Print a job's log; return the exit status."""
    options = parse(LogsOptions, "logs", args, positional=["name"])
    boto_session = aws_session.boto_session(options.region)
    if options.follow:
        return 0 if follow(boto_session, options.name).status == "Completed" else 1
    job = describe(boto_session.client("sagemaker"), options.name)
    lines = Logs(boto_session.client("logs"), job.name).new_lines(is_last=True)
    _print(lines or [f"No log lines yet: {job.name} is {job.status}, {job.secondary_status}."])
    return 0


def parser() -> Parser:
    """Return the parser of the options."""
    return parser_of(LogsOptions, "logs", positional=["name"])


@dataclass(frozen=True)
class Line:
    """Line of a log stream."""

    time_ms: int
    stream: str
    text: str


class Logs:
    """Log streams of a job, one for each start of each host, and how far each has been read."""

    def __init__(self, client: Any, job: str) -> None:
        self._client = client
        self._prefix = f"{job}/"
        self._tokens: dict[str, str | None] = {}
        self._held: list[Line] = []
        self._newest_ms = 0

    def new_lines(self, is_last: bool = False) -> list[str]:
        """Return the lines since the last call, in order of time; with several hosts, each line begins with its host.

        Lines that are newer than all lines of the last call are held back until the next one, because earlier lines of
        other hosts may arrive some seconds later. If `is_last`, nothing is held back.
        """
        self._find_streams()
        known = sorted(
            self._held + [line for stream in self._tokens for line in self._read(stream)], key=attrgetter("time_ms")
        )
        ready = [line for line in known if is_last or line.time_ms <= self._newest_ms]
        self._held = known[len(ready) :]
        self._newest_ms = max((line.time_ms for line in known), default=self._newest_ms)
        has_several = len({_host(stream) for stream in self._tokens}) > 1
        return [f"{_host(line.stream)}  {line.text}" if has_several else line.text for line in ready]

    def _find_streams(self) -> None:
        pages = self._client.get_paginator("describe_log_streams").paginate(
            logGroupName=GROUP, logStreamNamePrefix=self._prefix
        )
        try:
            for page in pages:
                for stream in page["logStreams"]:
                    self._tokens.setdefault(stream["logStreamName"], None)
        except self._client.exceptions.ResourceNotFoundException:
            pass  # the group does not exist before the first job of an account

    def _read(self, stream: str) -> Iterator[Line]:
        """Yield the new lines of a stream.

        Pages before the last one can be empty; the last page is the one whose token leads to itself.
        """
        while True:
            token = self._tokens[stream]
            position = {"nextToken": token} if token else {}
            page = self._client.get_log_events(logGroupName=GROUP, logStreamName=stream, startFromHead=True, **position)
            for event in page["events"]:
                yield Line(event["timestamp"], stream, event["message"].rstrip())
            self._tokens[stream] = page["nextForwardToken"]
            if page["nextForwardToken"] == token:
                return


def follow(boto_session: Any, name: str) -> TrainingJob:
    """Print what a job logs until it ends; and on standard error each change of its status, and how it ended.

    Returns:
        The job as it ended.

    Raises:
        InputError: there is no such job.
        SystemExit: Ctrl-C; the job continues.
    """
    try:
        job = _until_it_ends(boto_session, name)
    except KeyboardInterrupt:
        print(f"\nThe job continues; to stop it: python -m w2v_lightning stop {name}", file=sys.stderr)
        raise SystemExit(130) from None
    print(end_of(job), file=sys.stderr)
    return job


def _until_it_ends(boto_session: Any, name: str) -> TrainingJob:
    sagemaker = boto_session.client("sagemaker")
    job = describe(sagemaker, name)
    lines = Logs(boto_session.client("logs"), job.name)
    shown = ""
    while True:
        _print(lines.new_lines())
        if job.secondary_status != shown:
            shown = job.secondary_status
            print(f"[{job.name}: {shown}]", file=sys.stderr, flush=True)
        if job.has_ended:
            break
        time.sleep(POLL_S)
        job = describe(sagemaker, job.name)
    time.sleep(max(0.0, SETTLE_S - job.ended_s_ago))
    _print(lines.new_lines(is_last=True))
    return job


def _print(lines: list[str]) -> None:
    for line in lines:
        print(line, flush=True)


def _host(stream: str) -> str:
    """Return the host in the name of a stream, such as algo-1 in JOB/algo-1-1700000000."""
    return stream.rpartition("/")[2].rpartition("-")[0]
