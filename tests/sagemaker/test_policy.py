"""IAM policies: the commands need all that their policy allows, and nothing else."""

import json
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from recorded_commands import ACCOUNT, BUCKET, REGION, ROLE, run_all_commands

pytest_plugins = ["recorded_commands"]

LAUNCH = Path(__file__).parents[2] / "launch"
S3_ACTIONS = {
    **dict.fromkeys(("HeadBucket", "ListObjectsV2", "ListObjects"), "ListBucket"),
    **dict.fromkeys(("GetObject", "HeadObject"), "GetObject"),
    **dict.fromkeys(("PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"), "PutObject"),
}
DATA = f"arn:aws:s3:::{BUCKET}/librispeech/*"
# What `prepare --to` and `study prices --refresh` need, and uploads that end in their middle: not among the commands
# below.
PRICES = {("pricing:GetProducts", "*"), ("ec2:DescribeSpotPriceHistory", "*")}
NOT_CALLED = {("s3:PutObject", DATA), ("s3:GetObject", DATA), ("s3:AbortMultipartUpload", "*")} | PRICES


def statements(name: str) -> list[dict]:
    text = (LAUNCH / name).read_text()
    for placeholder, value in (("ACCOUNT", ACCOUNT), ("REGION", REGION), ("BUCKET", BUCKET)):
        text = text.replace(placeholder, value)
    return json.loads(text)["Statement"]


def as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


# ---- a call, as IAM sees it ------------------------------------------------------------------------------------------


def needed(service: str, operation: str, params: dict) -> Iterator[tuple[str, str, dict]]:
    """Yield the permissions that a call needs: action, ARN, and values for conditions."""
    if service == "s3":
        key = f"/{params['Key']}" if "Key" in params else ""
        yield f"s3:{S3_ACTIONS.get(operation, operation)}", f"arn:aws:s3:::{params.get('Bucket', '*')}{key}", {}
    elif service == "logs":
        place = f"log-group:{params['logGroupName']}:log-stream:{params.get('logStreamName', '')}"
        yield f"logs:{operation}", f"arn:aws:logs:{REGION}:{ACCOUNT}:{place}", {}
    elif service == "sagemaker":
        yield from _needed_of_sagemaker(operation, params)
    elif (service, operation) != ("sts", "GetCallerIdentity"):  # needs no permission
        yield f"{service}:{operation}", "*", {}


def _needed_of_sagemaker(operation: str, params: dict) -> Iterator[tuple[str, str, dict]]:
    job = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:training-job/{params.get('TrainingJobName')}"
    context = {"aws:ResourceTag/project": "w2v_lightning"} if operation == "StopTrainingJob" else {}
    if operation == "CreateTrainingJob":
        context = {f"aws:RequestTag/{tag['Key']}": tag["Value"] for tag in params.get("Tags", [])}
        context["sagemaker:InstanceTypes"] = params["ResourceConfig"]["InstanceType"]
        yield "iam:PassRole", params["RoleArn"], {"iam:PassedToService": "sagemaker.amazonaws.com"}
        yield "sagemaker:AddTags", job, {"sagemaker:TaggingAction": operation}
    yield f"sagemaker:{operation}", job if "TrainingJobName" in params else "*", context


def allowed_by(policy: list[dict], action: str, arn: str, context: dict) -> dict | None:
    """Return the statement of a policy that allows an action; None if there is none."""
    for statement in policy:
        matches = any(fnmatchcase(action, pattern) for pattern in as_list(statement["Action"]))
        matches &= any(fnmatchcase(arn, pattern) for pattern in as_list(statement["Resource"]))
        if matches and all(_holds(*c, context) for c in statement.get("Condition", {}).items()):
            return statement
    return None


def _holds(operator: str, wanted: dict, context: dict) -> bool:
    if operator == "Null":
        return all((key not in context) == (is_null == "true") for key, is_null in wanted.items())
    assert operator in ("StringEquals", "StringLike", "ForAllValues:StringLike")
    return all(any(fnmatchcase(context.get(key, ""), p) for p in as_list(value)) for key, value in wanted.items())


# ---- what the commands ask for --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_commands_stay_within_the_policy_and_use_all_of_it(recorder, capsys):
    run_all_commands(recorder, capsys)
    policy, used = statements("policy.json"), set()
    for action, arn, context in (right for call in recorder.calls for right in needed(*call)):
        statement = allowed_by(policy, action, arn, context)
        assert statement, f"{action} on {arn} with {context} is not allowed"
        used |= {(action, r) for r in as_list(statement["Resource"]) if fnmatchcase(arn, r)}
    granted = {(a, r) for s in policy for a in as_list(s["Action"]) for r in as_list(s["Resource"])}
    unused = {
        (action, resource)
        for action, resource in granted - used
        if not any(action == a and fnmatchcase(resource, r) for a, r in NOT_CALLED)
    }
    assert not unused, "granted and never needed"
    operations = {operation for _, operation, _ in recorder.calls}
    assert {"CreateTrainingJob", "StopTrainingJob", "Search", "GetLogEvents", "PutObject", "HeadBucket"} <= operations


# ---- what the policies refuse ----------------------------------------------------------------------------------------

OURS = {"aws:RequestTag/project": "w2v_lightning", "sagemaker:InstanceTypes": "ml.g5.xlarge"}
JOB = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:training-job/base"


@pytest.mark.parametrize(
    ("action", "arn", "context"),
    [
        ("sagemaker:CreateTrainingJob", JOB, OURS | {"sagemaker:InstanceTypes": "ml.p5.48xlarge"}),
        ("sagemaker:CreateTrainingJob", JOB, {"aws:RequestTag/project": "w2v_lightning"}),
        ("sagemaker:CreateTrainingJob", JOB, OURS | {"aws:RequestTag/project": "another"}),
        ("sagemaker:CreateTrainingJob", JOB.replace(REGION, "us-west-2"), OURS),
        ("sagemaker:StopTrainingJob", JOB, {"aws:ResourceTag/project": "another"}),
        ("sagemaker:AddTags", JOB, {}),
        ("iam:PassRole", ROLE.replace("w2v-training", "admin"), {"iam:PassedToService": "sagemaker.amazonaws.com"}),
        ("iam:PassRole", ROLE, {"iam:PassedToService": "ec2.amazonaws.com"}),
        ("s3:GetObject", f"arn:aws:s3:::{BUCKET}/payroll/2026.csv", {}),
        ("s3:GetObject", "arn:aws:s3:::another-bucket/runs/x", {}),
        ("s3:DeleteObject", f"arn:aws:s3:::{BUCKET}/runs/x", {}),
        ("logs:GetLogEvents", f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:/aws/lambda/x:log-stream:y", {}),
    ],
)
def test_the_submitters_policy_refuses(action, arn, context):
    assert allowed_by(statements("policy.json"), action, arn, context) is None


def test_the_policy_allows_what_those_refusals_vary():
    assert allowed_by(statements("policy.json"), "sagemaker:CreateTrainingJob", JOB, OURS)


@pytest.mark.parametrize(
    ("action", "arn", "is_allowed"),
    [
        ("s3:GetObject", f"arn:aws:s3:::{BUCKET}/librispeech/dev-clean.jsonl", True),
        ("s3:PutObject", f"arn:aws:s3:::{BUCKET}/librispeech/dev-clean.jsonl", False),
        ("s3:PutObject", f"arn:aws:s3:::{BUCKET}/runs/base/checkpoints/step-00000001.ckpt", True),
        ("s3:ListBucket", f"arn:aws:s3:::{BUCKET}", True),
        ("s3:ListBucket", "arn:aws:s3:::another-bucket", False),
        ("ecr:BatchGetImage", f"arn:aws:ecr:{REGION}:763104351884:repository/pytorch", True),
        ("ecr:BatchGetImage", f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/pytorch", False),
        ("sagemaker:CreateTrainingJob", JOB, False),
        ("iam:PassRole", ROLE, False),
    ],
)
def test_the_roles_policy(action, arn, is_allowed):
    assert bool(allowed_by(statements("role_policy.json"), action, arn, {})) == is_allowed


@pytest.mark.parametrize("name", ["policy.json", "role_policy.json"])
def test_all_resources_are_granted_only_where_an_action_knows_none(name):
    """AWS's service authorization reference lists these actions; no action is a pattern."""
    unbound = {
        "sagemaker:ListTrainingJobs",
        "sagemaker:Search",
        "cloudwatch:PutMetricData",
        "ecr:GetAuthorizationToken",
        "pricing:GetProducts",
        "ec2:DescribeSpotPriceHistory",
    }
    for statement in statements(name):
        assert statement["Effect"] == "Allow"
        assert not any("*" in action for action in as_list(statement["Action"]))
        if statement["Resource"] == "*":
            assert set(as_list(statement["Action"])) <= unbound


def test_only_sagemaker_of_this_account_becomes_the_role():
    (trust,) = statements("role_trust.json")
    assert trust["Principal"] == {"Service": "sagemaker.amazonaws.com"}
    assert trust["Condition"] == {"StringEquals": {"aws:SourceAccount": ACCOUNT}}


def test_placeholders_are_three():
    text = "".join(path.read_text() for path in LAUNCH.glob("*policy.json"))
    assert set(re.findall(r"\b[A-Z]{3,}\b", text)) == {"ACCOUNT", "REGION", "BUCKET"}
