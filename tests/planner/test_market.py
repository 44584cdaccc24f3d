"""Machines outside SageMaker: EC2, other clouds and a box at a given price, and what runs them."""

import shlex
from dataclasses import replace

import pytest
import yaml
from sample_job import FULL_CONFIG as CONFIG

from w2v_lightning.catalog import clouds
from w2v_lightning.errors import InputError
from w2v_lightning.planner import offers
from w2v_lightning.planner.candidates import Candidate, candidates_of
from w2v_lightning.planner.launch_text import skypilot_task, skypilot_text, torchrun_command
from w2v_lightning.planner.market import Market


@pytest.fixture(autouse=True)
def snapshot(tmp_path, monkeypatch):
    """Use the snapshot, whatever the user has refreshed."""
    monkeypatch.setenv("W2V_LIGHTNING_CACHE", str(tmp_path))
    clouds.listing.cache_clear()


def named(rented, name):
    return next(offer for offer in rented if offer.instance_type == name)


def test_ec2s_machines_have_their_own_price_and_sagemakers_network():
    rented, unpriced = offers.ec2_offers("us-east-1")
    p4d = named(rented, "p4d.24xlarge")
    assert (p4d.price.usd_per_hour, p4d.machine.gbit_per_s, p4d.machine.gpu) == (21.957642, 400, "A100")
    h100 = named(rented, "p5.4xlarge")
    assert (h100.price.usd_per_hour, h100.spot.usd_per_hour, h100.spot.log_sd) == (6.88, 2.6295, offers.SPOT_SD)
    assert set(unpriced) == {"p5e.48xlarge"}
    abroad = named(offers.ec2_offers("eu-west-1")[0], "p4d.24xlarge")
    assert abroad.price.described().startswith("ESTIMATED $24.")


def test_a_clouds_machines_are_those_of_the_cheapest_region():
    rented, unknown = offers.cloud_offers("vast", None)
    h200 = named(rented, "1x-H200-32-65536")
    assert (h200.machine.gpus, h200.machine.gpu_gib, h200.price.usd_per_hour) == (1, 141, 2.35)
    assert len({offer.instance_type for offer in rented}) >= 12
    assert "H100-NVL (vast)" in unknown
    assert "speed unknown" in unknown["H100-NVL (vast)"]
    assert {offer.machine.gpu for offer in offers.cloud_offers("runpod", None)[0]} == {"A100 PCIe"}
    only = offers.cloud_offers("nebius", "us-central1")[0]
    assert {offer.region for offer in only} == {"us-central1"}
    with pytest.raises(InputError, match=r"--region: no price of nebius is known in 'mars'; choose from eu-north1, "):
        offers.cloud_offers("nebius", "mars")


def test_a_box_costs_what_its_gpus_cost():
    box = offers.box("h100", 8, 2.29)
    assert (box.machine.gpus, box.machine.gpu, box.price.usd_per_hour) == (8, "H100", pytest.approx(18.32))
    assert str(Candidate(box.instance_type, 1, False, "bf16-mixed", box)) == "8 x H100, on demand"
    assert offers.box("A100-80GB", 1, 1.0).machine.gpu_gib == 80
    with pytest.raises(InputError, match=r"--gpu is 'H10', whose speed is not known\. Did you mean H100"):
        offers.box("H10", 1, 1.0)


def test_several_machines_are_planned_only_where_their_network_is_known():
    rented = [*offers.ec2_offers("us-east-1")[0], *offers.cloud_offers("lambda", None)[0]]
    found = candidates_of(rented, CONFIG, "allow", max_count=4)
    assert {candidate.count for candidate in found if candidate.offer.place == "ec2"} == {1, 2, 3, 4}
    assert {candidate.count for candidate in found if candidate.offer.place == "lambda"} == {1}
    assert not any(candidate.is_spot for candidate in found if candidate.offer.place == "lambda")  # it has no spot
    assert all(candidate.offer.spot for candidate in found if candidate.is_spot)


def test_types_are_chosen_among_those_of_all_places():
    market = Market.open(["sagemaker", "lambda"], "us-east-1", ["ml.g5.xlarge", "gpu_1x_h100_pcie"])
    assert market.jobs == ("ml.g5.xlarge",)
    assert [offer.instance_type for offer in market.rented] == ["gpu_1x_h100_pcie"]
    assert {name: machine.gpu for name, machine in market.machines.items()} == {
        "ml.g5.xlarge": "A10G",
        "gpu_1x_h100_pcie": "H100 PCIe",
    }
    with pytest.raises(InputError, match="--instance_type: gpu_1x_z is not offered at lambda"):
        Market.open(["lambda"], None, ["gpu_1x_z"])
    with pytest.raises(InputError, match="'us-east-9' is not a region"):
        Market.open(["ec2"], "us-east-9")


# ---- what runs them -------------------------------------------------------------------------------------------------

OVERRIDES = ["--trainer.max_epochs", "20", "--data.train_splits", "[it's, mine]"]


def on_ec2(count=2, is_spot=True):
    offer = named(offers.ec2_offers("us-east-1")[0], "p4d.24xlarge")
    return Candidate(offer.instance_type, count, is_spot, "bf16-mixed", replace(offer, spot=offer.price))


def test_a_task_of_skypilot_says_what_to_rent_and_what_to_run():
    text = skypilot_text(skypilot_task(on_ec2(), ["a b.yaml"], OVERRIDES))
    task = yaml.safe_load(text)
    assert task["resources"] == {
        "cloud": "aws", "instance_type": "p4d.24xlarge", "region": "us-east-1", "use_spot": True
    }  # fmt: skip
    assert task["num_nodes"] == 2
    words = shlex.split(task["run"])
    assert words[:3] == ["torchrun", "--nnodes=$SKYPILOT_NUM_NODES", "--nproc_per_node=8"]
    start = words.index("-m")
    assert words[start:] == [
        *("-m", "w2v_lightning", "fit", "--config", "a b.yaml"),
        *OVERRIDES,
        *("--trainer.default_root_dir", "/checkpoints/run"),
    ]
    assert "/checkpoints" in task["file_mounts"]  # or an interruption would lose the run
    alone = skypilot_task(on_ec2(1, is_spot=False), ["a.yaml"], [])
    assert "file_mounts" not in alone
    assert shlex.split(alone["run"]) == torchrun_command(on_ec2(1), ["a.yaml"], [])


@pytest.mark.parametrize("place", ["ec2", *clouds.CLOUDS[1:]])
def test_skypilot_accepts_the_task(place):
    schemas = pytest.importorskip("sky.utils.schemas", reason="pip install skypilot")
    jsonschema = pytest.importorskip("jsonschema")
    rented = offers.ec2_offers("us-east-1")[0] if place == "ec2" else offers.cloud_offers(place, None)[0]
    for offer in rented:
        task = skypilot_task(Candidate(offer.instance_type, 1, bool(offer.spot), "bf16-mixed", offer), ["a.yaml"], [])
        jsonschema.validate(task, schemas.get_task_schema())
        resources = {key: value for key, value in schemas.get_resources_schema().items() if key != "$schema"}
        resources["properties"]["cloud"].pop("case_insensitive_enum")  # SkyPilot's own extension of JSON Schema
        jsonschema.validate(task["resources"], resources)
        for mount in task.get("file_mounts", {}).values():
            assert mount["mode"] in str(schemas.get_storage_schema())


def test_a_box_is_trained_on_by_torchrun():
    box = offers.box("H100", 8, 2.29)
    command = torchrun_command(Candidate(box.instance_type, 1, False, "bf16-mixed", box), ["a.yaml"], OVERRIDES)
    assert command == ["torchrun", "--nproc_per_node=8", "-m", "w2v_lightning", "fit", "--config", "a.yaml", *OVERRIDES]
