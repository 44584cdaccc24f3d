"""AWS on the loopback interface: moto's server behind a proxy that adds what moto lacks: slow jobs, and refusals.

Fixtures: `pytest_plugins = ["s3", "sagemaker_server"]`. PYTEST_DONT_REWRITE: the tests import names from here.
"""

import http.client
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest
from s3 import use_credentials

GROUP = "/aws/sagemaker/TrainingJobs"
ROLE = "arn:aws:iam::123456789012:role/training"
STATUS_OF = {"Completed": "Completed", "Failed": "Failed", "Stopping": "Stopping"} | dict.fromkeys(
    ("Stopped", "MaxRuntimeExceeded", "MaxWaitTimeExceeded"), "Stopped"
)
FIRST_MS = int(time.time() * 1000)  # start of log times; CloudWatch refuses lines older than two weeks
STEP_S = 60  # seconds that each status of a story lasts


def story(*statuses: str, **at_the_end: Any) -> list[dict[str, Any]]:
    """Return the answers of DescribeTrainingJob as a job goes through these secondary statuses, one for each."""
    now = time.time() - STEP_S * len(statuses)
    answers = []
    for number, status in enumerate(statuses):
        began = [now + STEP_S * i for i in range(number + 1)]
        transitions = [
            {"Status": known, "StartTime": start, "EndTime": start + STEP_S, "StatusMessage": f"It is {known}"}
            for known, start in zip(statuses, began, strict=False)
        ]
        answer = {"SecondaryStatus": status, "TrainingJobStatus": STATUS_OF.get(status, "InProgress")}
        if status in STATUS_OF and status != "Stopping":
            answer |= {"TrainingEndTime": now, **at_the_end}
        else:
            del transitions[-1]["EndTime"]
        answers.append(answer | {"SecondaryStatusTransitions": transitions})
    return answers


class Service(ThreadingHTTPServer):
    """Proxy of moto's server.

    Each DescribeTrainingJob of a job gets the next answer of `story`; the last one is repeated. `calls` has all
    operations so far, of every service.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, moto: Any):
        super().__init__(("127.0.0.1", 0), _Handler)
        address = urlsplit(moto.meta.endpoint_url)
        self.upstream = address.hostname, address.port
        self.story = story("Starting", "Training", "Completed", TrainingTimeInSeconds=60, BillableTimeInSeconds=60)
        self.on_status: Callable[[str, str], None] = lambda job, status: None
        self.calls: list[str] = []
        self._position: dict[str, int] = {}
        self._refusals: dict[str, list[tuple[int, str, str]]] = {}
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def refuse(self, operation: str, code: str, message: str, *, status: int = 400, times: int = 1) -> None:
        self._refusals[operation] = [(status, code, message)] * times

    def answer(self, operation: str, question: dict[str, Any], pass_on: Callable[[], tuple[int, dict]]):
        """Return HTTP status and body for a call of SageMaker, or of another service with a JSON protocol."""
        with self._lock:
            self.calls.append(operation)
            if refusals := self._refusals.get(operation):
                status, code, message = refusals.pop()
                return status, {"__type": code, "message": message}
        if operation == "StopTrainingJob":  # moto lacks it
            self.story, self._position = story("Training", "Stopping", "Stopped"), {}
            return 200, {}
        status, body = pass_on()
        if operation == "DescribeTrainingJob" and status == 200:
            self._tell(body)
            self._position[body["TrainingJobName"]] += 1
            self.on_status(body["TrainingJobName"], body["SecondaryStatus"])
        if operation == "Search":
            _newest_first(body["Results"], question, lambda result: result["TrainingJob"])
            for result in body["Results"]:
                self._tell(result["TrainingJob"])
        if operation == "ListTrainingJobs":
            _newest_first(body["TrainingJobSummaries"], question, lambda row: row)
        return status, body

    def _tell(self, description: dict[str, Any]) -> None:
        """Replace the state in a description by that of the story; moto's jobs complete at once."""
        position = self._position.setdefault(description["TrainingJobName"], 0)
        for invented in ("TrainingEndTime", "FinalMetricDataList"):
            description.pop(invented, None)
        description.update(self.story[min(position, len(self.story) - 1)])

    def handle_error(self, request, client_address) -> None:
        """Ignore errors: tests close connections."""


def _newest_first(rows: list[dict], question: dict[str, Any], job_of: Callable[[dict], dict]) -> None:
    """Sort the rows if the request asks for it; moto ignores that."""
    if (question.get("SortBy"), question.get("SortOrder")) == ("CreationTime", "Descending"):
        rows.reverse()  # the sort is stable, and times have full seconds only
        rows.sort(key=lambda row: job_of(row)["CreationTime"], reverse=True)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.close_connection = True
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        operation = self.headers.get("X-Amz-Target", "").rpartition(".")[2]
        if not operation:
            self._answer(*self._pass_on(body))
            return

        def pass_on() -> tuple[int, dict]:
            status, _, answer = self._pass_on(body)
            return status, json.loads(answer or b"{}")

        status, answer = self.server.answer(operation, json.loads(body or b"{}"), pass_on)
        self._answer(status, {"Content-Type": "application/x-amz-json-1.1"}, json.dumps(answer).encode())

    do_GET = do_HEAD = do_PUT = do_DELETE = do_POST

    def _pass_on(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(*self.server.upstream, timeout=30)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, dict(answer.headers), content

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        dropped = ("content-length", "connection", "transfer-encoding", "date", "server")
        for name, value in headers.items():
            if name.lower() not in dropped:
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def service(moto, monkeypatch) -> Iterator[Service]:
    """Yield the server behind AWS_ENDPOINT_URL; the user's own credentials are not used."""
    use_credentials(monkeypatch)
    server = Service(moto)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    yield server
    server.shutdown()
    server.server_close()


class Account:
    """Account with a bucket, jobs, their logs and their files, written directly."""

    def __init__(self, service: Service, clients: dict[str, Any]):
        self.service = service
        self.bucket = f"bucket-{secrets.token_hex(4)}"
        self.s3, self._logs, self._sagemaker = (clients[name] for name in ("s3", "logs", "sagemaker"))
        self.s3.create_bucket(Bucket=self.bucket)

    def submit(self, run: str = "", *, instance_type: str = "ml.g4dn.xlarge", count: int = 1) -> str:
        """Create a spot job like those of `submit`; return its name."""
        run = run or f"run-{secrets.token_hex(3)}"
        name = f"{run}-{secrets.token_hex(3)}-20261123000000"
        folder = f"s3://{self.bucket}/{run}"
        self._sagemaker.create_training_job(
            TrainingJobName=name,
            AlgorithmSpecification={"TrainingImage": "image", "TrainingInputMode": "File"},
            RoleArn=ROLE,
            OutputDataConfig={"S3OutputPath": f"{folder}/jobs"},
            CheckpointConfig={"S3Uri": f"{folder}/checkpoints"},
            TensorBoardOutputConfig={"S3OutputPath": f"{folder}/tensorboard"},
            ResourceConfig={"InstanceType": instance_type, "InstanceCount": count, "VolumeSizeInGB": 100},
            StoppingCondition={"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 7200},
            EnableManagedSpotTraining=True,
            Tags=[{"Key": "project", "Value": "w2v_lightning"}, {"Key": "run", "Value": run}],
        )
        return name

    def job(self, name: str) -> dict[str, Any]:
        """Return the description of a job, with the fields of its request."""
        return self._sagemaker.describe_training_job(TrainingJobName=name)

    def keys(self) -> set[str]:
        """Return the keys of all objects in the bucket."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return {item["Key"] for page in pages for item in page.get("Contents", [])}

    def put(self, key: str, body: bytes) -> None:
        self.s3.put_object(Bucket=self.bucket, Key=key, Body=body)

    def print(self, job: str, host: str, *lines: tuple[int, str]) -> None:
        """Add lines to a job's log, each as milliseconds and text."""
        events = [{"timestamp": FIRST_MS + ms, "message": text} for ms, text in lines]
        with suppress(self._logs.exceptions.ResourceAlreadyExistsException):
            self._logs.create_log_group(logGroupName=GROUP)
        stream = f"{job}/{host}-1"
        with suppress(self._logs.exceptions.ResourceAlreadyExistsException):
            self._logs.create_log_stream(logGroupName=GROUP, logStreamName=stream)
        self._logs.put_log_events(logGroupName=GROUP, logStreamName=stream, logEvents=events)


@pytest.fixture(scope="session")
def clients(moto) -> dict[str, Any]:
    """Return clients of moto's server itself; creating them takes a while."""
    import boto3

    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    of_moto = {"endpoint_url": moto.meta.endpoint_url}
    return {"s3": moto} | {name: boto3.Session(**keys).client(name, **of_moto) for name in ("logs", "sagemaker")}


@pytest.fixture
def account(service, clients) -> Account:
    return Account(service, clients)
