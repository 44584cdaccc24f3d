"""Sessions with AWS: one that calls it, and one that calls nobody."""

import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2v_lightning.errors import InputError

if TYPE_CHECKING:
    import boto3
    from sagemaker.core.helper.session_helper import Session

# Throttling is answered by waiting, twice as long each time, up to 20 s.
RETRIES = {"mode": "standard", "total_max_attempts": 8}

# In the place of the user's own files of defaults for the SDK, which would change requests without being seen.
SDK_CONFIG = {"SchemaVersion": "1.0", "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}}}


def region_of(given: str | None = None) -> str:
    """The region: as given, or as AWS_REGION, AWS_DEFAULT_REGION or the profile says.

    Raises:
        InputError: none of them does.
    """
    region = given or os.environ.get("AWS_REGION") or _boto3().Session().region_name
    if not region:
        raise InputError("--region: none is given, and neither AWS_REGION nor the AWS profile names one.")
    return region


def boto_session(region: str | None = None) -> "boto3.Session":
    """A session with the user's credentials; its clients try again where AWS is busy. Nothing is asked yet.

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
    """One that looks for no credentials: on an EC2 instance already that would go over the network."""
    return _boto3().Session("offline", "offline", region_name=region)


def sdk_session(boto: "boto3.Session", bucket: str) -> "Session":
    """SageMaker's session, which uploads into `bucket`; the SDK's telemetry is off."""
    return _sdk_session_class()(boto, default_bucket=bucket, sagemaker_config=SDK_CONFIG)


def offline_sdk_session(boto: "boto3.Session", bucket: str, copies: Path | None = None) -> "Session":
    """One that uploads nothing and says where it would; `copies` gets BUCKET/KEY instead, if it is given."""

    class OfflineSession(_sdk_session_class()):
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
    """The SDK would ask IAM whether the role is good; guards.py and AWS itself do."""
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
