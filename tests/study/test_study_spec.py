"""study.yaml: what becomes of its lists, and what is said of a key or a value that is wrong."""

from pathlib import Path

import pytest
import yaml

from w2v_lightning.errors import InputError
from w2v_lightning.study.spec import fit_arguments, load

SHIPPED = Path(__file__).parents[2] / "configs" / "study_g4dn.yaml"


@pytest.fixture
def study(tmp_path):
    """Writes a study.yaml of these keys and reads it."""
    (tmp_path / "cfg.yaml").write_text("{}")

    def loaded(*cells, where=None, **keys):
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump({"config": "cfg.yaml", "cells": list(cells), **keys}))
        return load(path, where)

    return loaded


def names(study):
    return [cell.name for cell in study.cells]


# ---- the product ----------------------------------------------------------------------------------------------------


def test_the_shipped_study_is_the_original_matrix():
    study = load(SHIPPED)
    expected = {("ml.g4dn.2xlarge", count) for count in (1, 2, 4, 8, 12, 16)}
    expected |= {("ml.g4dn.12xlarge", count) for count in (1, 2, 3)}
    for is_spot in (False, True):
        assert {(cell.hardware, cell.count) for cell in study.cells if cell.is_spot == is_spot} == expected
    assert len(study.cells) == 18
    assert (study.where, study.quota, study.name) == ("sagemaker", 16, "g4dn")


def test_any_list_is_an_axis(study):
    found = study({"devices": [1, 2], "options": {"data.num_workers": [0, 4]}, "precision": ["32-true", "bf16-mixed"]})
    assert len(found.cells) == 8
    assert len(set(names(found))) == 8
    asked = {(cell.devices_per_host, cell.options["data.num_workers"], cell.precision) for cell in found.cells}
    assert len(asked) == 8
    assert all(cell.options["trainer.precision"] == cell.precision for cell in found.cells)


def test_a_list_in_a_list_is_a_value_of_an_option(study):
    splits = [["train-clean-100"], ["train-clean-100", "train-clean-360"]]
    found = study({"options": {"data.train_splits": splits}})
    assert [cell.options["data.train_splits"] for cell in found.cells] == splits


def test_a_link_has_axes_too(study):
    found = study({"hosts": 2, "link": {"mbit_per_s": [100, 400], "delay_ms": 2}})
    assert names(found) == ["local-x2-100mbit-2ms", "local-x2-400mbit-2ms"]
    cell = found.cells[0]
    assert (cell.link, cell.link_bytes_per_s, cell.link_delay_ms) == ("100 Mbit/s, 2 ms", 12.5e6, 2)
    assert (cell.count, cell.devices_per_host, cell.is_emulated) == (2, 1, True)


def test_within_one_host_there_is_no_link(study):
    for cell in (study({"devices": 2}).cells[0], study({"instance_type": "ml.g4dn.12xlarge"}).cells[0]):
        assert (cell.link, cell.link_bytes_per_s, cell.is_emulated) == ("", None, False)


def test_instances_have_the_network_of_their_type(study):
    cell = study({"instance_type": "ml.g4dn.2xlarge", "count": 4, "pricing": "spot", "precision": "16-mixed"}).cells[0]
    assert cell.name == "ml.g4dn.2xlarge-x4-spot-16-mixed"
    assert (cell.link, cell.link_bytes_per_s) == ("ml.g4dn.2xlarge", 10e9 / 8)
    assert (cell.storage, cell.storage_bytes_per_s) == ("FastFile", None)


def test_four_hosts_of_one_device_are_not_two_of_two(study):
    link = {"mbit_per_s": 100}
    found = study({"hosts": 2, "devices": 2, "link": link}, {"hosts": 4, "link": link})
    assert len(set(names(found))) == 2


def test_slow_storage_and_input_modes_have_names(study):
    cell = study({"storage": {"mbit_per_s": 4}}).cells[0]
    assert (cell.name, cell.storage, cell.storage_bytes_per_s) == ("local-x1-storage-4mbit", "4 Mbit/s", 0.5e6)
    found = study({"instance_type": "ml.g5.xlarge", "input_mode": ["File", "stream"]})
    assert [cell.storage for cell in found.cells] == ["File", "stream"]


def test_a_cells_own_options_come_last_and_one_limit_replaces_the_other(study):
    found = study(
        {"devices": 1, "epochs": 2, "options": {"data.seed": 5}}, {"devices": 2}, steps=9, options={"data.seed": 4}
    )
    limits = [(cell.options["trainer.max_steps"], cell.options["trainer.max_epochs"]) for cell in found.cells]
    assert limits == [(-1, 2), (9, -1)]
    assert [cell.options["data.seed"] for cell in found.cells] == [5, 4]


def test_repetitions_go_through_the_whole_study_one_by_one(study):
    found = study({"devices": [1, 2]}, repetitions=2)
    assert [cell.run for cell in found.cells] == ["local-x1-r1", "local-x2-r1", "local-x1-r2", "local-x2-r2"]


def test_options_are_written_so_that_yaml_reads_them_back():
    options = {"a": True, "b": None, "c": ["x", "y"], "d": "2 steps", "e": 0.5}
    words = dict(argument.removeprefix("--").split("=", 1) for argument in fit_arguments(options))
    assert {key: yaml.safe_load(word) for key, word in words.items()} == options


# ---- here, in the place of instances --------------------------------------------------------------------------------


def test_here_instances_become_devices_and_what_is_the_same_runs_once():
    study = load(SHIPPED, "local")
    assert [cell.devices_per_host for cell in study.cells] == [1, 2, 4, 8, 12, 16]  # 4, 8, 12 of 12xlarge are the same
    assert all((cell.hardware, cell.count, cell.is_spot) == ("local", 1, False) for cell in study.cells)
    assert (study.where, study.quota, study.stands_in) == ("local", None, True)


# ---- what is wrong --------------------------------------------------------------------------------------------------

DEVICES = {"devices": 1}
G4DN = {"instance_type": "ml.g4dn.2xlarge"}


@pytest.mark.parametrize(
    ("cells", "keys", "message"),
    [
        ([{"device": 2}], {}, r"number 1.*'device'.*Did you mean devices"),
        ([DEVICES], {"repetition": 2}, r"'repetition'.*Did you mean repetitions"),
        ([{"hosts": 2, "link": {"gbit_per_s": 1}}], {}, r"unknown key 'link\.gbit_per_s'. Did you mean mbit_per_s"),
        (
            [{"hosts": 2, "link": {"mbit_per_s": "100"}}],
            {},
            r"link\.mbit_per_s is '100': input should be a valid number",
        ),
        ([{"hosts": 2, "link": {"mbit_per_s": 0}}], {}, r"link\.mbit_per_s is 0: input should be greater than 0"),
        (
            [{"hosts": 2, "link": {"mbit_per_s": 1, "delay_ms": -1}}],
            {},
            r"link\.delay_ms is -1: input should be greater than or equal to 0",
        ),
        ([{"hosts": 2, "link": {"delay_ms": 1}}], {}, r"link\.mbit_per_s is missing"),
        ([{"hosts": 2, "link": 100}], {}, r"link is 100: input should be a valid dictionary"),
        ([{"hosts": 2}], {}, "hosts and link go together"),
        ([{"link": {"mbit_per_s": 9}}], {}, "hosts and link go together"),
        ([{"devices": 1.5}], {}, r"devices is 1\.5: input should be a valid integer"),
        ([{"devices": True}], {}, "devices is True: input should be a valid integer"),
        ([{"devices": 0}], {}, "devices is 0: input should be greater than or equal to 1"),
        ([G4DN | {"devices": 2}], {}, "'devices'"),
        ([{"instance_type": "ml.g4dn.3xlarge"}], {}, r"ml\.g4dn\.3xlarge.*Did you mean ml\.g4dn"),
        ([G4DN | {"pricing": "cheap"}], {}, r"pricing is 'cheap': input should be 'on-demand' or 'spot'"),
        ([G4DN | {"count": 17}], {"quota": 16}, r"quota is 16 .*ml\.g4dn\.2xlarge-x17 needs more"),
        ([G4DN, DEVICES], {}, "make two studies"),
        ([DEVICES, DEVICES], {}, r"local-x1 is there twice; `repetitions`"),
        ([DEVICES], {"steps": 5, "epochs": 1}, "both steps and epochs"),
        ([DEVICES | {"options": 5}], {}, "options is 5"),
        ([DEVICES], {"max_hours": "2 h"}, r"max_hours is '2 h'"),
        ([DEVICES], {"name": "a/b"}, r"name is 'a/b'"),
        ([DEVICES], {"config": "other.yaml"}, r"config: .*other\.yaml not found\. Relative paths"),
        ([DEVICES], {"config": None}, "config is missing"),
        ([{"devices": []}], {}, "a list in it is empty"),
        (["devices"], {}, "number 1 is 'devices': input should be a valid dictionary"),
        ([], {}, "a list `cells`"),
    ],
)
def test_what_is_wrong_is_named_with_the_remedy(study, cells, keys, message):
    with pytest.raises(InputError, match=message):
        study(*cells, **keys)


def test_a_study_of_this_host_cannot_go_elsewhere(study):
    with pytest.raises(InputError, match=r"--where is sagemaker.*no instance_type"):
        study(DEVICES, where="sagemaker")


def test_files_that_are_no_study(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.yaml: file not found"):
        load(tmp_path / "nothing.yaml")
    for text in ("cells: [", "5", "cells: {}"):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(InputError, match=r"bad\.yaml"):
            load(tmp_path / "bad.yaml")
