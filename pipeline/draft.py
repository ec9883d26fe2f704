"""Files and folders that appear under their name only when they are whole."""

from __future__ import annotations

import glob
import os
import platform
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from pipeline.disk import disk_errors, rename
from pipeline.errors import ExistsError, MissingInputError

SHOWN = 3  # files that a message names


@contextmanager
def draft_file(path: Path, replace: bool = False) -> Iterator[Path]:
    """Give the path of a file to write, which is moved to its place if all goes well and removed if not.

    What processes that died have left of the same file is removed.

    Parameters
    ----------
    path : Path
    replace : bool
        Whether a file that is there is overwritten; until the new one is whole, it stays.

    Raises
    ------
    ExistsError
        If it is there and is not to be replaced, or is a folder.
    MissingInputError
        If the folder that it is for does not exist.
    StorageError
        If the system refuses to write.
    """
    check_place(path, replace)
    if path.is_dir():
        raise ExistsError(f"{path}: is a folder; name a file in it")
    with disk_errors(path):
        partial = _sweep(path)
        try:
            yield partial
            rename(partial, path)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise


@contextmanager
def draft_folder(path: Path, owned: Callable[[str], bool], replace: bool = False) -> Iterator[Path]:
    """Give an empty folder to fill, which is moved to its place if all goes well and removed if not.

    Parameters
    ----------
    path : Path
        May be there, if it is empty.
    owned : callable
        Whether a file of this name may be removed.
    replace : bool
        Whether a folder that is there is replaced, if all of its files are ``owned``; until the new one is whole, it
        stays.

    Raises
    ------
    ExistsError
        If it is there and not empty, and is not to be replaced, or holds anything else.
    MissingInputError, StorageError
        As `draft_file`.
    """
    strange = sorted(entry.name for entry in path.iterdir() if not owned(entry.name)) if path.is_dir() else []
    if strange or (path.exists() and not path.is_dir()):
        what = f"holds {', '.join(strange[:SHOWN])}" if strange else "is a file"
        raise ExistsError(f"{path}: {what}, which is not of an export and is not replaced; name another folder")
    check_place(path, replace or (path.is_dir() and not any(path.iterdir())))
    with disk_errors(path):
        partial = _sweep(path)
        partial.mkdir()
        try:
            yield partial
            old = partial.with_name(f"{partial.name.removesuffix('.partial')}.old.partial")
            if path.exists():
                path.rename(old)
            partial.rename(path)
            shutil.rmtree(old, ignore_errors=True)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def check_place(path: Path, replace: bool) -> None:
    """Refuse a file or folder that cannot be made, before anything has cost time.

    Raises
    ------
    ExistsError, MissingInputError
        If it is there and is not to be replaced, or the folder that it is for is not there.
    """
    folder = path.parent
    if not folder.is_dir():
        raise MissingInputError(f"{path}: the folder {folder} does not exist; make it, or name another")
    if path.exists() and not replace:
        raise ExistsError(f"{path}: exists already; overwrite it with --replace, or choose another --out")


def _sweep(path: Path) -> Path:
    """Remove what dead processes of this machine have left of a file, and return a name that no other process uses."""
    mine = f"{path.name}.{platform.node()}-"
    for left in path.parent.glob(f"{glob.escape(mine)}*.partial"):
        process = left.name.removeprefix(mine).split("-")[0]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    return path.with_name(f"{mine}{os.getpid()}-{uuid.uuid4().hex[:8]}.partial")
