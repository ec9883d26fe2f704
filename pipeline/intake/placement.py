"""Where a label's files belong: which slice of the volume each is for.

A truth on the wrong slice is worse than one that is refused: files are placed only where their names, or their number,
leave no doubt.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.errors import MissingInputError
from pipeline.images.stack import Page

Sources = Mapping[int, str]

_PAGE = re.compile(r"#[0-9]+$")  # as `Page.name` numbers the slices of one file


def place(pages: Sequence[Page], sources: Sources, start_z: int | None, volume: Path) -> tuple[list[int], str]:
    """Slices that label files are for, and the rule that says so.

    From ``start_z`` on in order, where it is given; else by the name of the image's file; else by the last number in
    the name; else, if there are as many as slices, in order, unless names contradict it. The pages of one file have no
    names of their own: only their order, or ``start_z``, places them.

    Parameters
    ----------
    pages : sequence of Page
        In the order of z.
    sources : mapping of int to str
        Slices that exist, in order, with the name of the file that each came from.
    start_z : int or None
        Slice of the first page.
    volume : Path
        For messages.

    Raises
    ------
    MissingInputError
        If a slice does not exist, or no rule fits.
    """
    if not sources:
        raise MissingInputError(f"{volume}: has no slices yet; ingest its image first")
    if start_z is not None:
        return _place_from(start_z, pages, sources, volume), f"from slice {start_z} on"
    placed = None if _paged(pages) else _place_by_name(pages, sources)
    if placed is not None:
        return placed
    if len(pages) == len(sources) and not _contradict_order(pages, sources):
        return list(sources), "in natural order"
    raise _unplaced(pages, sources, volume)


def _place_from(start_z: int, pages: Sequence[Page], sources: Sources, volume: Path) -> list[int]:
    slices = list(range(start_z, start_z + len(pages)))
    for page, z in zip(pages, slices, strict=True):
        if z not in sources:
            raise MissingInputError(
                f"--start-z: {page.name} would be slice {z}, which does not exist; {volume} has slices "
                f"{min(sources)} to {max(sources)}"
            )
    return slices


def _place_by_name(pages: Sequence[Page], sources: Sources) -> tuple[list[int], str] | None:
    for rule, keys_of in _RULES:
        keys, known = keys_of([page.name for page in pages]), keys_of([*sources.values()])
        uses = Counter(known)  # the slices of two nights may have the same names
        by_key = {key: z for z, key in zip(sources, known, strict=False) if uses[key] == 1}
        if keys and len(set(keys)) == len(keys) and set(keys) <= set(by_key):
            return [by_key[key] for key in keys], rule
    return None


def _contradict_order(pages: Sequence[Page], sources: Sources) -> bool:
    """Whether a file would come to another slice than its name says."""
    for _, keys_of in _RULES:
        keys, known = keys_of([page.name for page in pages]), keys_of([*sources.values()])
        if not set(keys).isdisjoint(known) and keys != known:
            return True
    return False


def _unplaced(pages: Sequence[Page], sources: Sources, volume: Path) -> MissingInputError:
    """Say which file has no place, and why."""
    names = [*sources.values()]
    known = {*map(stem, names), *map(_number, names)} - {None}
    strange = [page.name for page in pages if known.isdisjoint({stem(page.name), _number(page.name)})]
    if _paged(pages):
        file, reason = pages[0].name, "pages have no names of their own, and their number or order is not that"
    elif strange:
        file, reason = strange[0], "its name and number are those of none"
    else:
        file, reason = pages[0].name, "its name and number, or those of another file, are not those of exactly one"
    return MissingInputError(
        f"{file}: cannot be placed: {reason} of the {len(names)} slices of {volume} ({names[0]} to {names[-1]}); "
        "leave it out, or give the slice of the first file with --start-z"
    )


def _paged(pages: Sequence[Page]) -> bool:
    return any(page.count > 1 for page in pages)


def stem(name: str) -> str:
    """File name without its suffix, but with the page of a multi-page file."""
    file, page = _split(name)
    return Path(file).stem + page


def _number(name: str) -> int | None:
    """Last number in a file name; that of a page is none: it counts from 0, and names seldom do."""
    numbers = re.findall(r"[0-9]+", Path(_split(name)[0]).stem)
    return int(numbers[-1]) if numbers else None


def _split(name: str) -> tuple[str, str]:
    page = _PAGE.search(name)
    return (name[: page.start()], page[0]) if page else (name, "")


def _stems(names: Sequence[str]) -> list[str | int]:
    return [stem(name) for name in names]


def _numbers(names: Sequence[str]) -> list[str | int]:
    """Numbers of all names; none where they do not tell the files apart."""
    numbers = [number for number in map(_number, names) if number is not None]
    return [*numbers] if len(set(numbers)) == len(names) else []


_RULES = (("by file name", _stems), ("by the number in the file name", _numbers))
