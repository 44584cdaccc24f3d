"""What AWS refuses or fails at, as one line that names the remedy."""

from collections.abc import Iterator
from contextlib import contextmanager

from w2v_lightning.errors import InputError

POLICY = "launch/policy.json (docs/sagemaker.md) has all that is needed"
RENEW = "`aws sso login` or `aws configure`, or set AWS_PROFILE."

BUSY = ("Throttling", "TooManyRequests", "RequestLimitExceeded", "SlowDown")
# By the code of the service's answer, without the "Exception" at its end.
REMEDIES = {
    **dict.fromkeys(
        ("AccessDenied", "UnauthorizedOperation"),
        f"These credentials may not do that: add the action to their policy; {POLICY}.",
    ),
    "403": f"These credentials may not read that, or it does not exist; {POLICY}.",
    **dict.fromkeys(
        ("InvalidClientTokenId", "InvalidAccessKeyId", "UnrecognizedClient", "SignatureDoesNotMatch"),
        f"The credentials are not valid: {RENEW}",
    ),
    "ExpiredToken": f"The credentials have expired: {RENEW}",
    "InvalidSignature": "The credentials are not valid, or this machine's clock is wrong.",
    "RequestTimeTooSkewed": "This machine's clock is wrong: set it.",
    "ResourceLimitExceeded": "Ask for more in Service Quotas (Amazon SageMaker, '... for training job usage'; spot has"
    " its own), or take a smaller --count or another --instance-type.",
    "ResourceInUse": "A job of this name exists: give another --name, or wait a second.",
    "NoSuchBucket": "There is no such bucket: create it, or correct the S3 URI.",
    "NoSuchKey": "There is no such object.",
    "404": "There is no such object or bucket: correct the S3 URI.",
    **dict.fromkeys(
        ("PermanentRedirect", "IllegalLocationConstraint"),
        "The bucket is in another region: choose that one with --region, or another bucket.",
    ),
    **dict.fromkeys(
        BUSY,
        "It was asked too often, also after waiting: try again in a minute.",
    ),
}
# By the name of botocore's exception, where no answer came or no question was sent.
WITHOUT_ANSWER = {
    "NoCredentialsError": f"There are no AWS credentials: {RENEW}",
    "PartialCredentialsError": "The AWS credentials are incomplete: set the key and the secret.",
    "ProfileNotFound": "Correct AWS_PROFILE, or add the profile with `aws configure`.",
    "CredentialRetrievalError": f"The credentials cannot be had: {RENEW}",
    **dict.fromkeys(
        ("TokenRetrievalError", "SSOTokenLoadError", "UnauthorizedSSOTokenError"),
        f"The credentials have expired: {RENEW}",
    ),
    "EndpointConnectionError": "Is the network up, and the region's name right?",
}
UNREACHABLE = ("HTTPClientError", "ConnectionError", "IncompleteReadError")
MAX_CHARACTERS = 300  # of what the service says, which may be pages of policy


@contextmanager
def explained() -> Iterator[None]:
    """Around calls of the service.

    Raises:
        InputError: one of them failed. It says what was asked, the answer, and what to do.
    """
    try:
        yield
    except Exception as error:
        if (message := explanation(error)) is None:
            raise
        raise InputError(message) from error


def explanation(error: Exception) -> str | None:
    """One line about what botocore raised; None for what is not of AWS."""
    names = {kind.__name__ for kind in type(error).__mro__ if kind.__module__.startswith("botocore.")}
    if "ClientError" in names:
        return _of_answer(error.response, error.operation_name)
    for name, remedy in WITHOUT_ANSWER.items():
        if name in names:
            return f"AWS: {_short(str(error))}. {remedy}"
    if names.intersection(UNREACHABLE):
        return f"AWS cannot be reached: {_short(str(error))}. Is the network up? Try again."
    return f"AWS: {_short(str(error))}." if names else None


def is_passing(error: Exception) -> bool:
    """It may be gone in a minute: no network, or a service that is busy or broken."""
    names = {kind.__name__ for kind in type(error).__mro__ if kind.__module__.startswith("botocore.")}
    answer = getattr(error, "response", None) or {}
    code = str(answer.get("Error", {}).get("Code", ""))
    is_busy = (
        code.removesuffix("Exception") in BUSY or answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500
    )
    return bool(names.intersection((*UNREACHABLE, "EndpointConnectionError"))) or ("ClientError" in names and is_busy)


def _of_answer(response: dict, operation: str) -> str:
    code = str(response.get("Error", {}).get("Code", "Unknown")).removesuffix("Exception")
    said = _short(response.get("Error", {}).get("Message") or "no reason given")
    attempts = response.get("ResponseMetadata", {}).get("RetryAttempts", 0) + 1
    often = f" after {attempts} attempts" if attempts > 1 else ""
    return f"AWS refused {operation}{often}: {code}: {said}. {_remedy(code, response)}"


def _remedy(code: str, response: dict) -> str:
    if code in REMEDIES:
        return REMEDIES[code]
    if response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500:
        return "AWS has a problem (health.aws.amazon.com): try again later."
    return "docs/sagemaker.md lists errors and what to do."


def _short(text: str) -> str:
    text = " ".join(text.split()).rstrip(".")
    return text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS] + " ..."
