"""AWS's PyTorch training images, by release of torch and by region."""

import re

from w2v_lightning.catalog.instances import Instance
from w2v_lightning.errors import InputError

# Release of torch: repository and tag. From 2.12 on, the image's torchaudio (2.11) is of another release.
IMAGES = {
    "2.10": ("pytorch-training", "2.10.0-gpu-py313-cu130-ubuntu22.04-sagemaker"),
    "2.11": ("pytorch", "2.11-cu130-amzn2023-sagemaker"),
    "2.12": ("pytorch", "2.12-cu130-amzn2023-sagemaker"),
    "2.13": ("pytorch", "2.13-cu133-amzn2023-sagemaker"),
}

ACCOUNT = "763104351884"
# Regions of this account, then those that have their own.
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
    """The URI of AWS's image for GPUs.

    Args:
        torch: its release, such as "2.11".
        region: such as "us-east-1".

    Raises:
        InputError: the table has no such release or region.
    """
    if torch not in IMAGES:
        raise InputError(
            f"torch in catalog/defaults.yaml is {torch!r}: choose from {', '.join(IMAGES)}, or give --image."
        )
    if region not in ACCOUNTS:
        raise InputError(f"--region: no training image is known for {region!r}; check it, or give `submit` an --image.")
    repository, tag = IMAGES[torch]
    domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    return f"{ACCOUNTS[region]}.dkr.ecr.{region}.{domain}/{repository}:{tag}"


def obstacle(image: str, machine: Instance) -> str | None:
    """Why an image cannot compute on an instance's GPUs, as far as its tag names its CUDA; None: nothing is known.

    CUDA 13 has no compiler and no libraries for GPUs before compute capability 7.5 (its release notes), so a V100 is
    there, torch sees it, and the first kernel fails.
    """
    cuda = re.search(r":.*\bcu(\d+)(\d)\b", image)
    if cuda is None or int(cuda[1]) < 13 or machine.capability >= (7, 5):
        return None
    return (
        f"CUDA {cuda[1]}.{cuda[2]}, which torch in the training image has, knows no {machine.gpu_name.split()[0]}"
        f" (compute capability {machine.capability[0]}.{machine.capability[1]}), only 7.5 and later"
    )
