"""Functions of the user's own: found, called, and not trusted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ConfigError, TargetError
from pipeline.settings.targets import binary_plane, call_target, find_target, grey_block

LAB = """
import numpy as np

number = 3

def block(values):
    return values > 4

def plane(values):
    return values[1].astype(np.int64) - 5

def same(values):
    return values

def inverted(values):
    return 255 - values

def wider(values):
    return values.astype(np.uint16)

def flat(values):
    return values.ravel()

def listed(values):
    return values.tolist()

def fails(values):
    return values.no_such_thing

def leaves(values):
    raise SystemExit("done")
"""
BLOCK = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "targets_lab.py").write_text(LAB)
    (tmp_path / "targets_script.py").write_text("import sys\nsys.exit('usage: targets_script FILE')\n")
    (tmp_path / "targets_broken.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def test_binary_plane_is_that_in_the_middle() -> None:
    for name in ("block", "plane"):
        expected = {"block": [[0, 255], [255, 255]], "plane": [[255, 0], [255, 255]]}[name]
        made = binary_plane(f"targets_lab:{name}", BLOCK)
        assert made.dtype == np.uint8
        assert made.tolist() == expected


def test_grey_block_is_what_was_returned() -> None:
    np.testing.assert_array_equal(grey_block("targets_lab:inverted", BLOCK), 255 - BLOCK)


@pytest.mark.parametrize("name", ["wider", "flat"])
def test_grey_block_of_another_kind_is_refused(name: str) -> None:
    with pytest.raises(
        TargetError, match=rf"^targets_lab:{name} returned uint.* expected the type and shape of its bl"
    ):
        grey_block(f"targets_lab:{name}", BLOCK)


def test_binary_plane_of_another_shape_is_refused() -> None:
    with pytest.raises(
        TargetError, match=r"^targets_lab:flat returned uint8 \(12,\), expected bool or integers of its"
    ):
        binary_plane("targets_lab:flat", BLOCK)


@pytest.mark.parametrize(
    ("name", "text", "trace"),
    [
        ("listed", "returned list, expected an array", ""),
        ("fails", "raised AttributeError: .*no_such_thing", "in fails"),
        ("leaves", "raised SystemExit: done", "in leaves"),
    ],
)
def test_target_that_fails_is_named_with_its_traceback(name: str, text: str, trace: str) -> None:
    with pytest.raises(TargetError, match=f"^targets_lab:{name} {text}") as caught:
        call_target(f"targets_lab:{name}", BLOCK)
    assert (trace in caught.value.trace) if trace else not caught.value.trace


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("targets_lab:number", r"the module has no function 'number'"),
        ("targets_none:f", r"cannot be imported \(ModuleNotFoundError: .*; put the module into the current folder"),
        ("targets_broken:f", r"cannot be imported \(SyntaxError: "),
        ("targets_script:f", r"cannot be imported \(SystemExit: usage: targets_script FILE\)"),
    ],
)
def test_target_that_cannot_be_found_is_one_message(target: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"^target: '{target}'.*{text}"):
        find_target(target)
