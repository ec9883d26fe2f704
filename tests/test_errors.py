"""Each exception is ours, is the builtin that it stands for, and says how the command line ends."""

from __future__ import annotations

import inspect
import pickle

import pytest

from pipeline import errors

TREE = [
    (errors.ConfigError, ValueError, 2),
    (errors.MissingInputError, FileNotFoundError, 2),
    (errors.ImageFileError, OSError, 2),
    (errors.UnsupportedImageError, TypeError, 2),
    (errors.ShapeMismatchError, ValueError, 2),
    (errors.LabelValueError, ValueError, 2),
    (errors.NotAVolumeError, ValueError, 2),
    (errors.ExistsError, FileExistsError, 2),
    (errors.RegionError, IndexError, 2),
    (errors.MemoryLimitError, MemoryError, 2),
    (errors.SchedulerError, ConnectionError, 2),
    (errors.StorageError, OSError, 2),
    (errors.DamageError, OSError, 2),
    (errors.UnavailableError, ConnectionError, 2),
    (errors.LockedError, TimeoutError, 4),
    (errors.TargetError, RuntimeError, 2),
]


@pytest.mark.parametrize(("kind", "builtin", "exit_code"), TREE, ids=lambda value: getattr(value, "__name__", ""))
def test_is_ours_and_the_builtin(kind, builtin, exit_code):
    with pytest.raises(builtin, match="tile: got 5") as caught:
        raise kind("tile: got 5")
    assert isinstance(caught.value, errors.PipelineError)
    assert caught.value.exit_code == exit_code
    assert str(caught.value) == "tile: got 5"


@pytest.mark.parametrize("kind", [kind for kind, _, _ in TREE], ids=lambda kind: kind.__name__)
def test_travels_between_processes(kind):
    copy = pickle.loads(pickle.dumps(kind("here")))
    assert type(copy) is kind
    assert str(copy) == "here"


def test_every_exception_stands_in_the_table():
    defined = {kind for _, kind in inspect.getmembers(errors, inspect.isclass)}
    assert defined == {errors.PipelineError, *(kind for kind, _, _ in TREE)}


def test_an_input_error_is_the_default():
    assert errors.PipelineError.exit_code == 2
