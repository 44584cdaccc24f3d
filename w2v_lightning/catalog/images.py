"""PyTorch training images of AWS, by torch release and region."""

import re

from w2v_lightning.catalog.instances import Instance
from w2v_lightning.errors import InputError, did_you_mean

# Repository and tag by torch release. From 2.12 on, the images contain torchaudio 2.11, which is of another release.
IMAGES = {
    "2.5": ("pytorch-training", "2.5.1-gpu-py311-cu124-ubuntu22.04-sagemaker"),
    "2.10": ("pytorch-training", "2.10.0-gpu-py313-cu130-ubuntu22.04-sagemaker"),
    "2.11": ("pytorch", "2.11-cu130-amzn2023-sagemaker"),
    "2.12": ("pytorch", "2.12-cu130-amzn2023-sagemaker"),
    "2.13": ("pytorch", "2.13-cu133-amzn2023-sagemaker"),
}

SMDDP_TORCH = "2.5"  # the last release whose image contains SMDDP

ACCOUNT = "763104351884"
# Regions whose images are in ACCOUNT; OTHER_ACCOUNTS has the regions with an account of their own.
REGIONS = (
    *("us-east-1", "us-east-2", "us-west-1", "us-west-2", "ca-central-1", "sa-east-1"),
    *("eu-central-1", "eu-north-1", "eu-west-1", "eu-west-2", "eu-west-3"),
    *("ap-northeast-1", "ap-northeast-2", "ap-south-1", "ap-southeast-1", "ap-southeast-2"),
)
OTHER_ACCOUNTS = {
    "af-south-1": "626614931356",
    "ap-east-1": "871362719292",
    "ap-northeast-3": "364406365360",
    "ap-south-2": "772153158452",
    "ap-southeast-3": "907027046896",
    "ap-southeast-4": "457447274322",
    "ap-southeast-5": "550225433462",
    "ap-southeast-7": "590183813437",
    "ca-west-1": "204538143572",
    "cn-north-1": "727897471807",
    "cn-northwest-1": "727897471807",
    "eu-central-2": "380420809688",
    "eu-south-1": "692866216735",
    "eu-south-2": "503227376785",
    "il-central-1": "780543022126",
    "me-central-1": "914824155844",
    "me-south-1": "217643126080",
    "mx-central-1": "637423239942",
    "us-gov-east-1": "446045086412",
    "us-gov-west-1": "442386744353",
}
ACCOUNTS = dict.fromkeys(REGIONS, ACCOUNT) | OTHER_ACCOUNTS


def image_uri(torch: str, region: str) -> str:
    """Return the URI of AWS's GPU training image.

    Args:
        torch: torch release, such as "2.11".
        region: AWS region, such as "us-east-1".

    Raises:
        InputError: IMAGES has no such release, or ACCOUNTS no such region.
    """
    if torch not in IMAGES:
        raise InputError(
            f"torch in w2v_lightning/catalog/defaults.yaml is {torch!r}; choose from {', '.join(IMAGES)},"
            " or give --image."
        )
    if region not in ACCOUNTS:
        raise InputError(
            f"--region: no training image is known for {region!r}; check the name, or give `submit` an --image."
        )
    repository, tag = IMAGES[torch]
    domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    return f"{ACCOUNTS[region]}.dkr.ecr.{region}.{domain}/{repository}:{tag}"


def check_region(region: str) -> None:
    """Check that AWS trains in a region.

    Raises:
        InputError: the region is unknown.
    """
    if region not in ACCOUNTS:
        raise InputError(f"--region: {region!r} is not a region that AWS trains in{did_you_mean(region, [*ACCOUNTS])}")


def obstacle_to_smddp(image: str) -> str | None:
    """Return why an image of AWS does not contain SMDDP, or None: another image may contain it with any torch."""
    release = re.search(r":(\d+)\.(\d+)\b", image)
    is_from_aws = image.partition(".")[0] in ACCOUNTS.values()
    if release is None or not is_from_aws or (int(release[1]), int(release[2])) <= (2, 5):
        return None
    return f"AWS's image of torch {release[1]}.{release[2]} has no SMDDP; that of torch 2.5.1 is the last one with it"


def obstacle(image: str, machine: Instance) -> str | None:
    """Return why an image cannot use an instance's GPUs, or None.

    The CUDA release is read from the image's tag; None if the tag does not name it. CUDA 13 has no compiler and no
    libraries for GPUs before compute capability 7.5, and CUDA before 12.8 has none for Blackwell (10.0 and later; see
    the release notes of both): torch detects such a GPU, and the first kernel fails.
    """
    cuda = re.search(r":.*\bcu(\d+)(\d)\b", image)
    if cuda is None:
        return None
    release, capability = (int(cuda[1]), int(cuda[2])), machine.capability
    if release >= (13, 0) and capability < (7, 5):
        needed = "7.5 or later is needed"
    elif release < (12, 8) and capability >= (10, 0):
        needed = "CUDA 12.8 or later is needed"
    else:
        return None
    return (
        f"CUDA {release[0]}.{release[1]} in the training image does not support {machine.gpu_name} GPUs (compute"
        f" capability {capability[0]}.{capability[1]}; {needed})"
    )
