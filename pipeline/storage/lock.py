"""Locks between processes: a file that the system lets go with the process that holds it, and that says who that is."""

from __future__ import annotations

import getpass
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.errors import LockedError, StorageError
from pipeline.storage.disk import disk_errors


@contextmanager
def locked(path: Path, problem: str, wait_s: float = 0.0) -> Iterator[None]:
    """Hold a lock that ends with the process that holds it; the file says who that is.

    Raises
    ------
    LockedError
        With ``problem``, if another process holds it.
    """
    lock = FileLock(path)
    try:
        with disk_errors(path):
            lock.acquire(timeout=wait_s)
    except Timeout as error:
        raise LockedError(f"{problem}{_holder(path)} (lock file {path}); wait for it to end") from error
    except NotImplementedError as error:
        raise StorageError(f"{path}: this file system has no locks; keep the volume on another one") from error
    try:
        with disk_errors(path):
            path.write_text(json.dumps(whoami() | {"since": now()}))
        yield
    finally:
        with suppress(OSError):
            os.truncate(path, 0)
        lock.release()


def _holder(lock: Path) -> str:
    """Who holds a lock, as its file says; nothing where it does not (yet)."""
    try:
        who = json.loads(lock.read_text())
        return f": {who['user']} on {who['host']}, process {who['process']}, since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def whoami() -> dict[str, Any]:
    """User, host and process that this is."""
    return {"user": _user(), "host": platform.node(), "process": os.getpid()}


def now() -> str:
    """The present time, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # containers run under numbers that have no name
        return str(os.getuid())
