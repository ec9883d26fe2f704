"""Source folders: which of their files the volume does not hold as they are, and which slice each is for.

Nothing is read here but names, sizes and times; nothing is written at all. A file whose place is in doubt is set aside,
and one that casts doubt on the whole folder is refused: a slice in the wrong place is worse than none.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import ConfigError, MissingInputError, PipelineError
from pipeline.images.stack import list_images, natural_key
from pipeline.intake.placement import stem
from pipeline.settings.config import SourceFolder

MAX_SLICES = 100_000  # a hundred times a mouse brain; a number beyond is a date, or a mistake


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a source folder, as it was when it was looked at."""

    path: Path
    size_bytes: int
    mtime_ns: int

    @property
    def name(self) -> str:
        """Its name in the folder."""
        return self.path.name


@dataclass(frozen=True, slots=True)
class Note:
    """A file that is not taken, and why."""

    file: str
    reason: str

    @classmethod
    def of(cls, name: str, error: PipelineError) -> Note:
        """Note of what is wrong with a file; the error's text begins with its name."""
        return cls(name, str(error).removeprefix(f"{name}: "))


Recorded = Mapping[int, tuple[str | None, int]]
"""Slices that exist: the name of the file that each came from, and when that was written to, in ns since 1970.

A name that is lost is None, and is that of no file; a time that is lost is 0.
"""

_NONE: Mapping[int, str] = {}


@dataclass(frozen=True, slots=True)
class Listing:
    """The images of a source folder."""

    folder: SourceFolder
    key: str
    """Its section in the configuration, for messages."""
    files: Sequence[SourceFile]
    set_aside: Sequence[Note] = ()


@dataclass(frozen=True, slots=True)
class Changes:
    """What a source folder holds that the volume does not.

    Attributes
    ----------
    numbered : dict of int to SourceFile
        Files that are new or have changed, by their slice.
    unnumbered : list of SourceFile
        New files without a number of their own, in natural order: images go after the last slice, a truth is for an
        image that does not exist yet.
    set_aside : list of Note
    vanished : dict of int to str
        Slices whose file is gone, and its name; one whose name is lost is not missed.
    """

    numbered: dict[int, SourceFile]
    unnumbered: list[SourceFile] = field(default_factory=list)
    set_aside: list[Note] = field(default_factory=list)
    vanished: dict[int, str] = field(default_factory=dict)

    @property
    def files(self) -> list[SourceFile]:
        """All new and changed files."""
        return [*self.numbered.values(), *self.unnumbered]


def list_source(folder: SourceFolder, key: str) -> Listing:
    """List the images of a source folder; hidden files, and those with other suffixes, are left out.

    Raises
    ------
    MissingInputError
        If the folder is gone.
    """
    try:
        paths = list_images(folder.folder)
    except MissingInputError as error:
        raise MissingInputError(f"{key}.folder: {error}") from error
    looked = [_look(path) for path in paths]
    return Listing(
        folder,
        key,
        [found for found in looked if isinstance(found, SourceFile)],
        [found for found in looked if isinstance(found, Note)],
    )


def find_images(listing: Listing, recorded: Recorded, volume: Path, unfinished: Mapping[int, str] = _NONE) -> Changes:
    """Image files that the volume does not hold as they are.

    Parameters
    ----------
    listing : Listing
    recorded : mapping
    volume : Path
        For messages.
    unfinished : mapping of int to str
        Slices that do not exist because a sync was killed while it wrote them, and their files: without numbers, only
        these names still say their places.

    Raises
    ------
    ConfigError
        If the folder is not one that the volume was made from, the slice of a file is in doubt, or it takes a name to
        tell which slice a file is and that is lost.
    """
    if listing.folder.number is None:
        return _in_order(listing, recorded, unfinished, volume)
    numbered, odd = _by_number(listing)
    _check_places(numbered, recorded, listing, volume)
    covered = {recorded[z][0] for z in numbered if z in recorded} - {None}
    if covered and covered.isdisjoint(file.name for file in listing.files):
        raise _another_volume(listing, recorded, volume)
    return _compare(numbered, recorded, listing, odd)


def find_truths(listing: Listing, recorded: Recorded, images: Mapping[int, str | None], volume: Path) -> Changes:
    """Truth files that the volume does not hold as they are.

    Parameters
    ----------
    listing : Listing
    recorded : mapping
        Of the truth.
    images : mapping of int to str or None
        Slices of the image that exist, and the name of the file of each; None where it is lost.
    volume : Path
        For messages.

    Raises
    ------
    ConfigError
        If the slice of a file is in doubt.
    """
    if listing.folder.number is None:
        placed, unplaced, odd = match_images(listing.files, images, listing.key)
    else:
        (placed, odd), unplaced = _by_number(listing), []
        _check_places(placed, recorded, listing, volume)
    changes = _compare(placed, recorded, listing, odd)
    changes.unnumbered.extend(unplaced)
    return changes


def match_images(
    files: Iterable[SourceFile], images: Mapping[int, str | None], key: str
) -> tuple[dict[int, SourceFile], list[SourceFile], list[Note]]:
    """Slice of each truth file, by the name of the image's file without suffix; files of no image; files of several.

    Raises
    ------
    ConfigError
        If two files are for one slice.
    """
    slices = defaultdict(list)
    for z, name in images.items():
        if name is not None:
            slices[stem(name)].append(z)
    placed: dict[int, SourceFile] = {}
    unplaced, odd = [], []
    for file in files:
        found = slices.get(stem(file.name), [])
        if not found:
            unplaced.append(file)
        elif len(found) > 1:
            odd.append(Note(file.name, f"its name is that of the slices {found}; tell them apart with `{key}.number`"))
        elif placed.setdefault(found[0], file) is not file:
            raise _two_for_one(placed[found[0]], file, found[0])
    return placed, unplaced, odd


def find_unsettled(
    files: Collection[SourceFile], settle_s: float, pause: Callable[[float], object] = time.sleep
) -> dict[SourceFile, str]:
    """Files that may still be written to, and what shows it.

    One that was written to long enough ago is settled. The others are looked at twice: a time in the future, of a clock
    that is ahead, says nothing.
    """
    now_ns = time.time_ns()
    young = [file for file in files if now_ns - file.mtime_ns < settle_s * 1e9]
    if not young:
        return {}
    pause(settle_s)
    return {file: "is still being written" for file in young if _look(file.path) != file}


def _look(path: Path) -> SourceFile | Note:
    try:
        status = path.stat()
    except OSError as error:
        return Note(path.name, f"cannot be read ({error.strerror}); is it a broken link?")
    return SourceFile(path, status.st_size, status.st_mtime_ns)


def _by_number(listing: Listing) -> tuple[dict[int, SourceFile], list[Note]]:
    """Files by slice, and those whose names say none."""
    pattern, first = listing.folder.number or "", listing.folder.first
    matches = {file: re.search(pattern, file.name) for file in listing.files}
    if matches and not any(matches.values()):
        raise ConfigError(
            f"{listing.key}.number: `{pattern}` is found in none of the {len(matches)} names of "
            f"{listing.folder.folder}, such as {listing.files[0].name}; mend the pattern"
        )
    numbered: dict[int, SourceFile] = {}
    odd = []
    for file, match in matches.items():
        z, reason = _slice_of(match, first)
        if reason:
            odd.append(Note(file.name, reason))
        elif numbered.setdefault(z, file) is not file:
            raise _two_for_one(numbered[z], file, z)
    return numbered, odd


def _slice_of(match: re.Match[str] | None, first: int) -> tuple[int, str]:
    """Slice of a file, or why it has none."""
    if match is None:
        return 0, "its name does not match the pattern `number`"
    if not re.fullmatch(r"[0-9]{1,18}", match[1] or ""):
        return 0, f"the pattern `number` finds {match[1]!r} in its name, which is no number"
    number = int(match[1])
    if number < first:
        return 0, f"its number {number} is below `first: {first}`"
    if number - first >= MAX_SLICES:
        return 0, f"its number {number} would make it slice {number - first}; volumes have at most {MAX_SLICES:,}"
    return number - first, ""


def _in_order(listing: Listing, recorded: Recorded, unfinished: Mapping[int, str], volume: Path) -> Changes:
    """Files by name; new ones only where they come after the last slice's."""
    names = {**_names(recorded, listing, volume), **unfinished}
    slices = _slices_by_name(names)
    numbered: dict[int, SourceFile] = {}
    new: list[SourceFile] = []
    odd = []
    last = names[max(names)] if names else ""
    for file in listing.files:
        known = slices.get(file.name, [])
        if len(known) > 1:
            raise ConfigError(
                f"{file.name}: is the name of the slices {known} of {volume}; tell them apart with "
                f"`{listing.key}.number`"
            )
        if known:
            numbered[known[0]] = file
        elif names and natural_key(Path(file.name)) <= natural_key(Path(last)):
            odd.append(
                Note(file.name, f"does not come after {last}, the last slice; `{listing.key}.number` fills gaps")
            )
        elif new and natural_key(Path(new[-1].name)) == natural_key(Path(file.name)):
            raise ConfigError(f"{new[-1].name} and {file.name}: same place in the z order; leave one out or rename it")
        else:
            new.append(file)
    if recorded and listing.files and not numbered:
        raise _another_volume(listing, recorded, volume)
    changes = _compare(numbered, recorded, listing, odd)
    changes.unnumbered.extend(new)
    return changes


def _names(recorded: Recorded, listing: Listing, volume: Path) -> dict[int, str]:
    """Name of every slice's file; all of them, or the file of the slice that has none would be taken for a new one."""
    names = {z: name for z, (name, _) in recorded.items() if name is not None}
    lost = sorted(recorded.keys() - names.keys())
    if lost:
        raise ConfigError(
            f"{listing.key}: the name of the file of slice {', '.join(map(str, lost))} is lost from {volume}, and "
            f"names alone say where files belong; give `{listing.key}.number`, a pattern that finds the slice in each "
            f"name, or restore slices/image/files/{lost[0]:06d}/zarr.json from a copy of the volume"
        )
    return names


def _compare(numbered: Mapping[int, SourceFile], recorded: Recorded, listing: Listing, odd: Sequence[Note]) -> Changes:
    here = {file.name for file in listing.files}
    return Changes(
        numbered={z: file for z, file in sorted(numbered.items()) if recorded.get(z) != (file.name, file.mtime_ns)},
        set_aside=[*listing.set_aside, *odd],
        vanished={
            z: name for z, (name, _) in recorded.items() if name is not None and z not in numbered and name not in here
        },
    )


def _check_places(numbered: Mapping[int, SourceFile], recorded: Recorded, listing: Listing, volume: Path) -> None:
    """Refuse a file that is one slice already, and would be another one."""
    slices = _slices_by_name({z: name for z, (name, _) in recorded.items() if name is not None})
    for z, file in numbered.items():
        known = slices.get(file.name, [z])
        if z not in known:
            number = z + listing.folder.first
            way_out = f"set `first: {number - known[0]}`" if number >= known[0] else "mend the pattern"
            raise ConfigError(
                f"{listing.key}: {file.name} is slice {known[0]} of {volume} and would be slice {z}; {way_out}, or "
                "name another volume"
            )


def _slices_by_name(names: Mapping[int, str]) -> dict[str, list[int]]:
    slices = defaultdict(list)
    for z, name in sorted(names.items()):
        slices[name].append(z)
    return slices


def _two_for_one(first: SourceFile, second: SourceFile, z: int) -> ConfigError:
    return ConfigError(f"{first.name} and {second.name}: both are for slice {z}; leave one out, or mend the pattern")


def _another_volume(listing: Listing, recorded: Recorded, volume: Path) -> ConfigError:
    last = max(z for z, (name, _) in recorded.items() if name is not None)
    return ConfigError(
        f"{listing.key}.folder: {listing.folder.folder} holds no file that {volume} was made from, such as "
        f"{recorded[last][0]} of slice {last}; name that folder, or another volume"
    )
