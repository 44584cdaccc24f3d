"""Summary of a job before it is submitted."""

import re
from dataclasses import replace

import pytest
from sample_job import CONFIG, JOB

from w2v_lightning.catalog.images import image_uri
from w2v_lightning.sagemaker import job_summary

SMDDP = replace(JOB, instance_type="ml.p4d.24xlarge", config=CONFIG | {"trainer": {"strategy": "smddp"}})


def line(job, subject, rate=0.1):
    return next(line for line in job_summary.summary(job, rate).splitlines() if line.startswith(subject))


@pytest.mark.parametrize(
    ("instance_type", "words"),
    [("ml.g4dn.xlarge", "16-mixed: T4 .*7.5.* no bfloat16"), ("ml.g5.xlarge", "bf16-mixed: A10G .*8.6.* bfloat16")],
)
def test_the_plan_says_what_is_computed_in(instance_type, words):
    assert re.search(words, line(replace(JOB, instance_type=instance_type), "precision"))
    set_by_user = CONFIG | {"trainer": {"precision": "32-true"}}
    assert "32-true, set by trainer.precision" in line(replace(JOB, config=set_by_user), "precision")


def test_the_plan_says_what_carries_gradients_and_why():
    assert re.search(r"nccl.*torchrun.*not on ml\.g4dn\.12xlarge", line(JOB, "gradients"))
    assert re.search(r"smddp.*mpirun.*if the image has SMDDP", line(SMDDP, "gradients"))
    assert "NCCL was requested" in line(replace(JOB, config=CONFIG | {"trainer": {"strategy": "ddp"}}), "gradients")
    assert "one GPU" in line(replace(JOB, instance_type="ml.g5.xlarge", count=1), "gradients")


def test_the_plan_says_what_it_may_cost():
    assert re.search(r"\$17\.60 to \$29\.34 .*\$58\.68 at most, at \$4\.89 an hour as of", line(JOB, "cost"))
    assert re.search(r"cost +\$58\.68 at most", line(replace(JOB, is_spot=False), "cost"))
    assert re.search(r"\d at most, at ESTIMATED \$\d", line(replace(JOB, region="af-south-1"), "cost"))
    assert "unknown" in line(replace(JOB, instance_type="ml.p5e.48xlarge"), "cost")


def test_the_plan_says_how_much_an_interruption_may_cost():
    assert re.search(r"every 15m, .*about 11 s.*one interruption in 5 h is assumed", line(JOB, "checkpoints"))
    assert "interruption" not in line(replace(JOB, is_spot=False), "checkpoints")


def test_the_image_is_for_the_torch_that_this_package_wants():
    assert JOB.image == image_uri("2.11", "us-east-1")
