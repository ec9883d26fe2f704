"""The disk under a store: what the system refuses, in a user's words, and patience with one that is far away."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import numpy as np

from pipeline.errors import StorageError, UnavailableError
from pipeline.scratch import scratch

Result = TypeVar("Result")

RETRY_AFTER_S = (0.1, 0.5, 2.0)  # a server that fails over is back after seconds; one that is not is a fault
SILENT_FILES = 2  # that do not answer are bad sectors; more are a store that is away, and each costs seconds


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Say in a user's words what the operating system refused."""
    try:
        yield
    except OSError as error:
        raise_refusal(path, error)
        if error.errno is not None and not isinstance(error, FileNotFoundError):
            raise StorageError(
                f"{path}: cannot be written ({error}); mend the file system, then run the same command again"
            ) from error
        raise


def retried(call: Callable[[], Result]) -> Result:
    """Return what a call returns; where a network store has not answered for a moment, make it again after a while."""
    for pause_s in RETRY_AFTER_S:
        try:
            return call()
        except OSError as error:
            if error.errno not in _TRANSIENT:
                raise
        time.sleep(pause_s)
    return call()


def is_file(path: Path) -> bool:
    """Whether a path is there; unlike `Path.is_file`, not whether the storage happens to answer."""
    try:
        retried(path.stat)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def read_file(path: Path, buffer: str) -> memoryview:
    """Return the bytes of a file, in the `scratch` buffer of this name."""
    with path.open("rb", buffering=0) as file:
        data = scratch.array(buffer, (os.fstat(file.fileno()).st_size,), np.uint8).data
        done = 0
        while done < len(data):  # the system may give less than it is asked for
            got = file.readinto(data[done:])
            if not got:
                raise ValueError("it ends too early")
            done += got
    return data


def write_file(path: Path, parts: Sequence[bytes], staged: Path) -> None:
    """Write a file under another name and move it over its own, so that a reader meets the old one or the new one."""

    def write() -> None:
        with staged.open("wb") as file:
            file.writelines(parts)

    try:
        retried(write)
        try:
            rename(staged, path)
        except FileNotFoundError:
            staged.stat()  # who has lost the folder for it must not make others
            retried(lambda: path.parent.mkdir(parents=True, exist_ok=True))
            rename(staged, path)
    except BaseException:
        with suppress(OSError):
            staged.unlink()
        raise


def rename(built: Path, path: Path) -> None:
    """Move a file over another one; a network store that has done so may not have said it, and is not asked again."""
    identity = built.stat()
    try:
        retried(lambda: built.replace(path))
    except FileNotFoundError:
        if not (path.exists() and os.path.samestat(path.stat(), identity)):
            raise


def raise_refusal(path: Path, error: Exception) -> None:
    """Raise what the operating system refused in a user's words, if that is what went wrong."""
    number = error.errno if isinstance(error, OSError) else None
    if number in _REASONS:
        raise StorageError(f"{path}: {_REASONS[number]}") from error
    if number in _TRANSIENT:
        raise UnavailableError(
            f"{path}: the storage does not answer ({error}), also when asked {len(RETRY_AFTER_S)} times more; run "
            "again when it does"
        ) from error


_TRANSIENT = {
    errno.EAGAIN, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH,
    errno.EIO, errno.ENETDOWN, errno.ENETUNREACH, errno.ENOTCONN, errno.ESTALE, errno.ETIMEDOUT,
}  # fmt: skip
_REASONS = {
    errno.ENOSPC: "the disk is full; make room, then run the same command again",
    errno.EDQUOT: "the disk quota is used up; make room, then run the same command again",
    errno.EFBIG: "the file would be larger than the system allows; raise the limit (`ulimit -f unlimited`)",
    errno.EROFS: "the file system is read-only; write to another place, or mount it for writing",
    errno.EACCES: "permission denied; check the owner and mode of the folder",
    errno.EPERM: "permission denied; check the owner and mode of the folder",
    errno.EMFILE: "too many open files; raise the limit (`ulimit -n 4096`) or use fewer threads",
    errno.ENFILE: "too many open files on this machine; close some programs or use fewer threads",
}
