"""What the system refuses is said in words, and asked again where that helps."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from pipeline.errors import StorageError, UnavailableError
from pipeline.storage import disk


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "here: the disk is full; make room"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "here: the disk quota is used up"),
        (OSError(errno.EROFS, "Read-only file system"), "here: the file system is read-only"),
        (PermissionError(errno.EACCES, "Permission denied"), "here: permission denied"),
        (OSError(errno.EUCLEAN, "Structure needs cleaning"), "here: cannot be written .*needs cleaning"),
    ],
    ids=["full", "quota", "read-only", "permission", "other"],
)
def test_what_the_system_refuses_is_said_in_words(tmp_path, error, text):
    with pytest.raises(StorageError, match=text), disk.disk_errors(tmp_path / "here"):
        raise error


def failing(*errors: Exception) -> Callable[[], str]:
    left = list(errors)

    def call() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return call


@pytest.fixture
def pauses(monkeypatch):
    """The pauses that were made, in place of making them."""
    made: list[float] = []
    monkeypatch.setattr(disk.time, "sleep", made.append)
    return made


@pytest.mark.parametrize(
    "error", [OSError(errno.ESTALE, "Stale file handle"), OSError(errno.EIO, "Input/output error")], ids=repr
)
def test_what_a_network_store_refuses_for_a_moment_is_asked_again(pauses, error):
    assert disk.retried(failing(error, error)) == "done"
    assert pauses == [0.1, 0.5]


def test_what_it_refuses_for_long_is_named(tmp_path, pauses):
    stale = OSError(errno.ESTALE, "Stale file handle")
    named = pytest.raises(UnavailableError, match=r"here: the storage does not answer .*Stale file handle")
    with named, disk.disk_errors(tmp_path / "here"):
        disk.retried(failing(stale, stale, stale, stale))
    assert pauses == [0.1, 0.5, 2.0]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), ValueError("a bug")], ids=repr)
def test_other_errors_are_not_asked_again(pauses, error):
    with pytest.raises(type(error)):
        disk.retried(failing(error))
    assert pauses == []


@pytest.mark.parametrize("error", [FileNotFoundError(2, "no"), RuntimeError("a bug"), ValueError("a bug")], ids=repr)
def test_other_errors_pass(tmp_path, error):
    with pytest.raises(type(error)) as caught, disk.disk_errors(tmp_path):
        raise error
    assert caught.value is error
