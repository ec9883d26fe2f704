"""Options that several commands share."""

from __future__ import annotations

import pytest

from pipeline.commands.options import expect_one, refuse_beside, refuse_together, region_box
from pipeline.errors import ConfigError, RegionError
from pipeline.geometry import Box
from pipeline.storage.volume import Volume
from tests.command import kesm


def test_two_options_of_which_one_can_be_followed():
    refuse_together({"--csv": True, "--json": False})
    with pytest.raises(ConfigError, match=r"^--csv: not with --json; leave one of them out$"):
        refuse_together({"--csv": True, "--qc": False, "--json": True})


@pytest.mark.parametrize(("given", "got"), [((True, True), "both"), ((False, False), "neither")])
def test_one_of_two_options_is_needed(given, got):
    expect_one({"--label": True, "--image": False})
    with pytest.raises(ConfigError, match=f"^--label, --image: got {got}, expected one of them$"):
        expect_one(dict(zip(("--label", "--image"), given, strict=True)))


def test_options_that_would_be_ignored():
    refuse_beside({"--a": False, "--b": False}, "only with --c")
    with pytest.raises(ConfigError, match=r"^--b: only with --c; leave it out$"):
        refuse_beside({"--a": False, "--b": True}, "only with --c")
    with pytest.raises(ConfigError, match=r"^--a, --b: only with --c; leave them out$"):
        refuse_beside({"--a": True, "--b": True}, "only with --c")


def test_region_of_a_volume(tmp_path):
    volume = Volume.create(tmp_path / "brain.zarr", (3, 40, 50), "uint8")
    assert region_box(None, volume) is None
    assert region_box("z=1:2,x=10:50", volume) == Box((1, 0, 10), (2, 40, 50))
    with pytest.raises(RegionError, match="region: got z=0:4"):
        region_box("z=0:4", volume)


def test_every_command_says_what_its_truth_is_for():
    helps = {name: " ".join(kesm(name, "--help").out.split()) for name in ("run", "tables", "train")}
    assert "Label to compare the mask with" in helps["run"]
    assert "Label to learn from" in helps["train"]
    assert "Counts and scores against this one" in helps["tables"]
