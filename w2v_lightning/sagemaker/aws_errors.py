"""Errors of AWS, each as one line that names the remedy."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from w2v_lightning.errors import InputError

POLICY = "launch/policy.json (docs/sagemaker.md) has all actions that are needed"
RENEW = "`aws sso login` or `aws configure`, or set AWS_PROFILE."

BUSY = ("Throttling", "TooManyRequests", "RequestLimitExceeded", "SlowDown")
# By the error code in the answer, without "Exception" at its end.
REMEDIES = {
    **dict.fromkeys(
        ("AccessDenied", "UnauthorizedOperation"),
        f"These credentials do not allow that: add the action to their policy; {POLICY}.",
    ),
    "403": f"These credentials do not allow reading it, or it does not exist; {POLICY}.",
    **dict.fromkeys(
        ("InvalidClientTokenId", "InvalidAccessKeyId", "UnrecognizedClient", "SignatureDoesNotMatch"),
        f"The credentials are not valid: {RENEW}",
    ),
    "ExpiredToken": f"The credentials have expired: {RENEW}",
    "InvalidSignature": "The credentials are not valid, or this machine's clock is wrong.",
    "RequestTimeTooSkewed": "This machine's clock is wrong: set it.",
    "ResourceLimitExceeded": "Request more in Service Quotas (Amazon SageMaker, '... for training job usage'; spot has"
    " quotas of its own), or use a smaller --count or another --instance_type.",
    "ResourceInUse": "A job of this name exists: give another --name, or wait a second.",
    "NoSuchBucket": "There is no such bucket: create it, or correct the S3 URI.",
    "NoSuchKey": "There is no such object.",
    "404": "There is no such object or bucket: correct the S3 URI.",
    **dict.fromkeys(
        ("PermanentRedirect", "IllegalLocationConstraint"),
        "The bucket is in another region: choose that one with --region, or another bucket.",
    ),
    **dict.fromkeys(BUSY, "The service is busy, and waiting between attempts did not help: try again in a minute."),
}
# By the name of botocore's exception, if no answer came or no request was sent.
REMEDIES_WITHOUT_ANSWER = {
    "NoCredentialsError": f"There are no AWS credentials: {RENEW}",
    "PartialCredentialsError": "The AWS credentials are incomplete: set the key and the secret.",
    "ProfileNotFound": "Correct AWS_PROFILE, or add the profile with `aws configure`.",
    "CredentialRetrievalError": f"The credentials cannot be retrieved: {RENEW}",
    **dict.fromkeys(
        ("TokenRetrievalError", "SSOTokenLoadError", "UnauthorizedSSOTokenError"),
        f"The credentials have expired: {RENEW}",
    ),
    "EndpointConnectionError": "Is the network up, and the region's name right?",
}
UNREACHABLE = ("HTTPClientError", "ConnectionError", "IncompleteReadError")
MAX_CHARACTERS = 300  # of the service's message, which may quote pages of policy


@contextmanager
def explain_aws_errors() -> Iterator[None]:
    """Turn errors of AWS within a block, or a decorated function, into an InputError.

    Raises:
        InputError: a call failed; says which, the answer, and what to do.
    """
    try:
        yield
    except Exception as error:
        if (message := explanation(error)) is None:
            raise
        raise InputError(message) from error


def explanation(error: Exception) -> str | None:
    """Return one line about an exception of botocore; None for any other exception."""
    names = _botocore_names(error)
    if "ClientError" in names:
        return _refusal(_response(error), getattr(error, "operation_name", "the request"))
    for name, remedy in REMEDIES_WITHOUT_ANSWER.items():
        if name in names:
            return f"AWS: {_short(str(error))}. {remedy}"
    if names.intersection(UNREACHABLE):
        return f"AWS cannot be reached: {_short(str(error))}. Is the network up? Try again."
    return f"AWS: {_short(str(error))}." if names else None


def is_transient(error: Exception) -> bool:
    """Return whether the error may be gone in a minute: no network, or a service that is busy or broken."""
    names = _botocore_names(error)
    response = _response(error)
    code = str(response.get("Error", {}).get("Code", "")).removesuffix("Exception")
    is_busy = code in BUSY or response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500
    return bool(names.intersection((*UNREACHABLE, "EndpointConnectionError"))) or ("ClientError" in names and is_busy)


def _botocore_names(error: Exception) -> set[str]:
    """Return the names of the exception's classes in botocore, which need not be installed."""
    return {kind.__name__ for kind in type(error).__mro__ if kind.__module__.startswith("botocore.")}


def _response(error: Exception) -> dict[str, Any]:
    return getattr(error, "response", None) or {}


def _refusal(response: dict[str, Any], operation: str) -> str:
    code = str(response.get("Error", {}).get("Code", "Unknown")).removesuffix("Exception")
    message = _short(response.get("Error", {}).get("Message") or "no reason given")
    attempts = response.get("ResponseMetadata", {}).get("RetryAttempts", 0) + 1
    after = f" after {attempts} attempts" if attempts > 1 else ""
    return f"AWS refused {operation}{after}: {code}: {message}. {_remedy(code, response)}"


def _remedy(code: str, response: dict[str, Any]) -> str:
    if code in REMEDIES:
        return REMEDIES[code]
    if response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500:
        return "AWS has a problem (health.aws.amazon.com): try again later."
    return "docs/sagemaker.md lists errors and what to do."


def _short(text: str) -> str:
    text = " ".join(text.split()).rstrip(".")
    return text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS] + " ..."
