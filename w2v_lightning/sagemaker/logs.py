"""The command `logs`: what all hosts of a job print, in order of time, until it ends."""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from w2v_lightning.sagemaker import aws_session
from w2v_lightning.sagemaker.advice import verdict
from w2v_lightning.sagemaker.training_job import TrainingJob, add_options, describe

GROUP = "/aws/sagemaker/TrainingJobs"
POLL_S = 5.0
# Lines come to the service some seconds after they were printed, also the last ones of a job that has ended.
SETTLE_S = 15.0


def add_parser(commands: Any) -> None:
    """`logs`."""
    parser = commands.add_parser(
        "logs", help="what a job has printed; with --follow, exit status 1 unless it completes"
    )
    add_options(parser)
    parser.add_argument("--follow", action="store_true", help="go on until the job ends")
    parser.set_defaults(run=_run)


@dataclass(frozen=True)
class Line:
    """Of a log stream."""

    time_ms: int
    stream: str
    text: str


class Logs:
    """The log streams of a job, one for each start of each host, and how far each has been read."""

    def __init__(self, client: Any, job: str) -> None:
        self._client = client
        self._prefix = f"{job}/"
        self._tokens: dict[str, str | None] = {}
        self._held: list[Line] = []
        self._newest_ms = 0

    def new_lines(self, is_last: bool = False) -> list[str]:
        """What has come since the last call, in order of time, each with its host where there are several.

        What is newer than anything that the call before has seen waits for the next one, unless this is the last: lines
        of other hosts, which come some seconds later, may belong before it.
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
            pass  # the first job of an account makes the group

    def _read(self, stream: str) -> Iterator[Line]:
        """A page can be empty before the last one; that is the one whose token leads to itself."""
        while True:
            token = self._tokens[stream]
            place = {"nextToken": token} if token else {}
            page = self._client.get_log_events(logGroupName=GROUP, logStreamName=stream, startFromHead=True, **place)
            for event in page["events"]:
                yield Line(event["timestamp"], stream, event["message"].rstrip())
            self._tokens[stream] = page["nextForwardToken"]
            if page["nextForwardToken"] == token:
                return


def follow(boto_session: Any, name: str) -> TrainingJob:
    """Print what a job prints until it has ended; on standard error its status whenever that changes, and its end.

    Returns:
        The job as it ended.

    Raises:
        InputError: there is no such job.
        SystemExit: Ctrl-C; the job goes on.
    """
    try:
        job = _until_it_ends(boto_session, name)
    except KeyboardInterrupt:
        print(f"\nThe job goes on; to end it: python -m w2v_lightning stop {name}", file=sys.stderr)
        raise SystemExit(130) from None
    print(verdict(job), file=sys.stderr)
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


def _run(options: argparse.Namespace) -> int:
    boto_session = aws_session.boto_session(options.region)
    if options.follow:
        return 0 if follow(boto_session, options.name).status == "Completed" else 1
    job = describe(boto_session.client("sagemaker"), options.name)
    lines = Logs(boto_session.client("logs"), job.name).new_lines(is_last=True)
    _print(lines or [f"Nothing is printed yet: {job.name} is {job.status}, {job.secondary_status}."])
    return 0


def _print(lines: list[str]) -> None:
    for line in lines:
        print(line, flush=True)


def _host(stream: str) -> str:
    """Of JOB/algo-1-1700000000."""
    return stream.rpartition("/")[2].rpartition("-")[0]
