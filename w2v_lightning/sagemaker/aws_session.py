"""Sessions with AWS: online ones, and offline ones that call no service."""

import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2v_lightning.errors import InputError

if TYPE_CHECKING:
    import boto3
    from sagemaker.core.helper.session_helper import Session

# After throttling, clients wait and try again; the wait doubles each time, up to 20 s.
RETRIES = {"mode": "standard", "total_max_attempts": 8}

# Replaces the user's own SDK defaults, which would change requests unnoticed.
SDK_CONFIG = {"SchemaVersion": "1.0", "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}}}


def configured_region() -> str | None:
    """Return the region of AWS_REGION, AWS_DEFAULT_REGION or the AWS profile; None if none of them names one."""
    return os.environ.get("AWS_REGION") or _boto3().Session().region_name


def region_of(given: str | None = None) -> str:
    """Return the region: the given one, or that of AWS_REGION, AWS_DEFAULT_REGION or the AWS profile.

    Raises:
        InputError: none of them names a region.
    """
    region = given or configured_region()
    if not region:
        raise InputError("--region is missing, and neither AWS_REGION nor the AWS profile names a region: give one.")
    return region


def boto_session(region: str | None = None) -> "boto3.Session":
    """Return a session with the user's credentials, whose clients try again while AWS is busy. No request is sent yet.

    Raises:
        InputError: no region is given or configured, or boto3 is not installed.
    """
    boto3 = _boto3()
    from botocore.config import Config
    from botocore.session import get_session

    core = get_session()
    core.set_default_client_config(Config(retries=RETRIES))
    return boto3.Session(botocore_session=core, region_name=region_of(region))


def offline_boto_session(region: str) -> "boto3.Session":
    """Return a session that does not look for credentials; on an EC2 instance, looking for them uses the network."""
    return _boto3().Session("offline", "offline", region_name=region)


def sdk_session(boto: "boto3.Session", bucket: str) -> "Session":
    """Return a session of the SageMaker SDK that uploads into `bucket`, with the SDK's telemetry off."""
    return _sdk_session_class()(boto, default_bucket=bucket, sagemaker_config=SDK_CONFIG)


def offline_sdk_session(boto: "boto3.Session", bucket: str, copies: Path | None = None) -> "Session":
    """Return a session of the SageMaker SDK that uploads nothing, but returns the URIs of uploads.

    Args:
        boto: session whose clients are not called.
        bucket: default bucket of uploads.
        copies: folder that gets a copy of each upload as BUCKET/KEY; None: no copies.
    """
    base: Any = _sdk_session_class()

    class OfflineSession(base):
        def upload_data(self, path: str, bucket: str, key_prefix: str, **_: Any) -> str:
            if copies:
                shutil.copytree(path, copies / bucket / key_prefix, dirs_exist_ok=True)
            return f"s3://{bucket}/{key_prefix}"

    return OfflineSession(boto, default_bucket=bucket, sagemaker_config=SDK_CONFIG)


def _boto3() -> Any:
    try:
        import boto3
    except ImportError:
        raise _not_installed() from None
    return boto3


def _sdk_session_class() -> type:
    # The SDK would ask IAM about the role, which needs another permission; checks.py and SageMaker check it anyway.
    os.environ["SAGEMAKER_VALIDATE_ROLE"] = "false"
    try:
        from sagemaker.core.helper.session_helper import Session
        from sagemaker.core.utils.utils import logger
    except ImportError:
        raise _not_installed() from None
    logger.setLevel(logging.WARNING)
    return Session


def _not_installed() -> InputError:
    return InputError("SageMaker jobs need boto3 and sagemaker 3: pip install 'w2v-lightning[aws]'")
