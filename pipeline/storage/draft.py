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

from pipeline.errors import ConfigError, ExistsError, MissingInputError
from pipeline.storage.disk import disk_errors, rename

SHOWN = 3  # files that a message names
_OLD = ".old.partial"  # ends the name of a folder that is being replaced


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
    ConfigError
        If it would lie inside a Zarr hierarchy.
    ExistsError
        If it is there and is not to be replaced, or is a folder.
    MissingInputError
        If the folder that it is for does not exist.
    StorageError
        If the system refuses to write.
    """
    check_place(path, replace)
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
    ConfigError, MissingInputError, StorageError
        As `draft_file`.
    """
    _check_folder(path)
    with disk_errors(path):
        partial = _sweep(path)  # first: it may put back what is there
        _check_owned(path, owned, replace)
        old = partial.with_name(f"{partial.name.removesuffix('.partial')}{_OLD}")
        partial.mkdir()
        try:
            yield partial
            if path.exists():
                path.rename(old)
            partial.rename(path)
            if old.exists():
                old.rename(partial)  # it is not to be put back any more
        except BaseException:
            with suppress(OSError):
                if old.exists() and not path.exists():
                    old.rename(path)
            raise
        finally:
            with suppress(OSError):
                _remove(partial)


def check_place(path: Path, replace: bool, option: str = "--out") -> None:
    """Refuse a file that cannot be made, before anything has cost time.

    Parameters
    ----------
    path : Path
    replace : bool
        Whether it may be there.
    option : str
        That which names it.

    Raises
    ------
    ConfigError
        As `check_outside`.
    ExistsError, MissingInputError
        If it is there and is not to be replaced, or is a folder; or the folder that it is for is not there.
    StorageError
        If the system refuses to look.
    """
    _check_folder(path)
    with disk_errors(path):
        if path.is_dir():
            raise ExistsError(f"{path}: is a folder; name a file in it with {option}")
        if path.exists() and not replace:
            raise ExistsError(f"{path}: exists already; overwrite it with --replace, or choose another {option}")


def check_outside(path: Path) -> None:
    """Refuse a place inside a volume: files that are not of a Zarr hierarchy litter it, and may take the place of data.

    Raises
    ------
    ConfigError
        If so, also by way of links.
    """
    places = [path] if path.name == ".." else [path, path.parent]  # what is replaced of a link lies in the latter
    for place in map(Path, map(os.path.realpath, places)):
        for folder in (place, *place.parents):
            if os.path.isfile(folder / "zarr.json"):  # noqa: PTH113  (Path's raises where one may not look)
                raise ConfigError(f"{path}: would lie in {folder}, which is Zarr data; choose a place outside of it")


def _check_folder(path: Path) -> None:
    check_outside(path)
    with disk_errors(path):
        if not path.parent.is_dir():
            raise MissingInputError(f"{path}: the folder {path.parent} does not exist; make it, or name another")


def _check_owned(path: Path, owned: Callable[[str], bool], replace: bool) -> None:
    """Refuse a folder that is not to be replaced."""
    held = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    strange = [name for name in held if not owned(name)]
    if strange or (path.exists() and not path.is_dir()):
        what = f"holds {', '.join(strange[:SHOWN])}" if strange else "is a file"
        raise ExistsError(f"{path}: {what}, which is not of an export and is not replaced; name another folder")
    if held and not replace:
        raise ExistsError(f"{path}: exists already; overwrite it with --replace, or choose another --out")


def _sweep(path: Path) -> Path:
    """Remove what dead processes of this machine have left of a file, and return a name that no other process uses.

    What was there before is put back where its process died before there was anything new.
    """
    path = path.absolute()  # `.` has no name
    mine = f"{path.name}.{platform.node()}-"
    for left in path.parent.glob(f"{glob.escape(mine)}*.partial"):
        process = left.name.removeprefix(mine).split("-")[0]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            if left.name.endswith(_OLD) and not path.exists():
                left.rename(path)
            else:
                _remove(left)
    return path.with_name(f"{mine}{os.getpid()}-{uuid.uuid4().hex[:8]}.partial")


def _remove(path: Path) -> None:
    """Remove a file or a folder; of a link, the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
