"""Tables of instances and images against those of moto and the SageMaker SDK; environment of NCCL."""

import gzip
import importlib.util
import json
import math
import re
from pathlib import Path

import pytest

from w2v_lightning.catalog.images import ACCOUNTS, IMAGES, SMDDP_TORCH, image_uri, obstacle, obstacle_to_smddp
from w2v_lightning.catalog.instances import EXCLUDED, INSTANCES, instance, nccl_environment
from w2v_lightning.errors import InputError


def folder_of(package):
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed: pip install 'w2v-lightning[aws,dev]'")
    return Path(spec.origin).parent


@pytest.fixture(scope="module")
def ec2():
    """Return EC2's description of its instance types, from moto."""
    with gzip.open(folder_of("moto") / "ec2" / "resources" / "instance_types.json.gz") as file:
        return json.load(file)


@pytest.mark.parametrize("name", [name for name in INSTANCES if not name.startswith("ml.p3.")])  # moto lacks p3
def test_the_table_says_what_ec2_says(ec2, name):
    ours, theirs = instance(name), ec2[name.removeprefix("ml.")]
    gpu, network = theirs["GpuInfo"]["Gpus"][0], theirs["NetworkInfo"]
    assert (ours.gpus, ours.gpu_name) == (gpu["Count"], gpu["Name"])
    assert ours.gpu_gib == pytest.approx(gpu["MemoryInfo"]["SizeInMiB"] / 1024, rel=0.08)  # A10G: 24 nominal, 22.4
    assert (ours.vcpus, ours.gib) == (theirs["VCpuInfo"]["DefaultVCpus"], theirs["MemoryInfo"]["SizeInMiB"] // 1024)
    assert ours.has_efa == network["EfaSupported"]
    burst = network["NetworkPerformance"].startswith("Up to")  # the sustained bandwidth is lower
    named = math.prod(map(int, re.findall(r"\d+", network["NetworkPerformance"])))  # also "4x 100 Gigabit"
    assert ours.gbit_per_s == (network["NetworkCards"][0]["BaselineBandwidthInGbps"] if burst else named)


def test_every_gpu_instance_type_that_sagemaker_trains_on_has_a_decision():
    session = pytest.importorskip("botocore.session", reason="pip install 'w2v-lightning[aws]'").get_session()
    enum = session.get_service_model("sagemaker").shape_for("TrainingInstanceType").enum
    on_gpus = {name for name in enum if re.match(r"ml\.[gp]\d", name)}
    excluded = {name for name in on_gpus if name.split(".")[1] in EXCLUDED}
    assert len(on_gpus) > 50
    assert on_gpus - excluded == set(INSTANCES)
    assert {name.split(".")[1] for name in excluded} == set(EXCLUDED)


@pytest.mark.parametrize(("name", "reason"), [("ml.p2.xlarge", "K80"), ("ml.p6e-gb200.36xlarge", "Arm")])
def test_an_excluded_type_is_refused_with_the_reason(name, reason):
    with pytest.raises(InputError, match=f"{name} cannot be used: .*{reason}"):
        instance(name)


def test_a_gpu_is_named_with_and_without_its_memory():
    machine = instance("ml.p4de.24xlarge")
    assert (machine.gpu, machine.gpu_name, machine.gpu_gib) == ("A100 80 GB", "A100", 80)
    assert instance("ml.g7e.2xlarge").gpu_name == "RTX PRO Server 6000"


def test_generations_that_compute_in_bfloat16():
    assert instance("ml.g4dn.12xlarge").capability == (7, 5)
    assert {name.split(".")[1] for name, machine in INSTANCES.items() if machine.capability < (8, 0)} == {
        *("g4dn", "p3", "p3dn")
    }


@pytest.mark.parametrize(
    ("name", "advice"),
    [("ml.g4dn.12xlage", "ml.g4dn.12xlarge"), ("g5.xlarge", "ml.g5.xlarge"), ("cheapest", "Examples: ml.g4dn")],
)
def test_an_unknown_type_is_named_with_its_neighbours(name, advice):
    with pytest.raises(InputError, match=f"--instance_type.*{name}.*{advice}"):
        instance(name)


def test_nccl_hears_of_efa_only_where_there_is_efa_between_hosts():
    g4dn, g5, p4d = (instance(name) for name in ("ml.g4dn.12xlarge", "ml.g5.xlarge", "ml.p4d.24xlarge"))
    assert nccl_environment(g4dn, 1) == {"NCCL_DEBUG": "WARN"}
    assert "FI_PROVIDER" not in nccl_environment(g5, 2)
    assert nccl_environment(g4dn, 2)["FI_PROVIDER"] == "efa"
    assert "FI_EFA_USE_DEVICE_RDMA" not in nccl_environment(g4dn, 2)
    assert nccl_environment(p4d, 2)["FI_EFA_USE_DEVICE_RDMA"] == "1"


# ---- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("torch", IMAGES)
def test_images_and_accounts_are_those_that_the_sdk_knows(torch):
    table = folder_of("sagemaker.core") / "image_uri_config"
    full = {"2.5": "2.5.1", "2.10": "2.10.0"}.get(torch)
    file = "pytorch.json" if full else "pytorch-amzn2023.json"
    versions = json.loads((table / file).read_text())["training"]["versions"]
    known = versions[full or torch]
    assert {region: known["registries"].get(region) for region in ACCOUNTS} == ACCOUNTS
    assert image_uri(torch, "us-east-1").partition("/")[2].startswith(f"{known['repository']}:{torch}")


def test_an_image_of_a_region_comes_from_that_region():
    assert image_uri("2.11", "us-west-2") == (
        "763104351884.dkr.ecr.us-west-2.amazonaws.com/pytorch:2.11-cu130-amzn2023-sagemaker"
    )
    assert image_uri("2.13", "cn-north-1") == (
        "727897471807.dkr.ecr.cn-north-1.amazonaws.com.cn/pytorch:2.13-cu133-amzn2023-sagemaker"
    )


@pytest.mark.parametrize(("torch", "region"), [("2.4", "us-east-1"), ("2.11", "us-middle-1")])
def test_where_there_is_no_image_the_way_out_is_named(torch, region):
    with pytest.raises(InputError, match="--image"):
        image_uri(torch, region)


@pytest.mark.parametrize("torch", IMAGES)
def test_images_of_cuda_13_are_for_turing_and_later_and_of_cuda_12_for_hopper_and_earlier(torch):
    image = image_uri(torch, "us-east-1")
    useless = {machine.gpu_name for machine in INSTANCES.values() if obstacle(image, machine)}
    blackwell = {"B200", "B300", "RTX PRO 4500", "RTX PRO Server 6000"}
    assert useless == (blackwell if torch == SMDDP_TORCH else {"V100"})  # of 2.5, it has CUDA 12.4


@pytest.mark.parametrize("image", ["mine:latest", "mine:2.8.0-cu129", "host:5000/mine", "cu130/mine:2.9-cu126-sm70"])
def test_of_other_images_no_gpu_is_refused(image):
    assert obstacle(image, instance("ml.p3.2xlarge")) is None


@pytest.mark.parametrize("torch", IMAGES)
def test_images_with_smddp(torch):
    reason = obstacle_to_smddp(image_uri(torch, "cn-north-1"))
    assert reason is None if torch == SMDDP_TORCH else f"torch {torch} has no SMDDP" in reason


@pytest.mark.parametrize("image", ["mine:latest", "1.dkr.ecr.us-east-1.amazonaws.com/mine:2.11-smddp"])
def test_images_of_others_may_have_smddp(image):
    assert obstacle_to_smddp(image) is None
