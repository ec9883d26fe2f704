"""What a figure is asked to show: run, truth and voxels, and those that are meant where nothing was said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, MissingInputError, RegionError
from pipeline.findings.census import Census, choose_run, compared_truths, latest_run, take_census
from pipeline.geometry import Box, Grid, Triple
from pipeline.printable import printable
from pipeline.settings.recipe import Recipe
from pipeline.storage.keys import valid_tiles
from pipeline.storage.tables import RunTables, run_names, source_run
from pipeline.storage.volume import Volume


@dataclass(frozen=True, slots=True)
class Request:
    """What a figure is asked to show; what is left out is chosen, where there is one choice.

    Attributes
    ----------
    name, truth : str, optional
        Run and truth.
    region : Box, optional
        Voxels.
    z : int, optional
        A slice.
    at : tuple, optional
        (z, y, x) in voxels: the tile there.
    level : int, optional
        Of the pyramid; default: as fine as the picture is.
    metric : str
        Score that colours or ranks.
    """

    name: str | None = None
    truth: str | None = None
    region: Box | None = None
    z: int | None = None
    at: Triple | None = None
    level: int | None = None
    metric: str = "mcc"


@dataclass(frozen=True, slots=True)
class Subject:
    """Run, truth and voxels that a request means.

    Attributes
    ----------
    volume : Volume
    name, truth : str or None
    box : Box
        Voxels: all, a region, a slice or a tile.
    damage : list of (Box, str)
        Voxels and reason of what could not be read of the run's tables; one list of all that were made of a subject.
    """

    volume: Volume
    name: str | None
    truth: str | None
    box: Box
    damage: list[tuple[Box, str]] = field(default_factory=list, compare=False)

    @property
    def title(self) -> str:
        """The volume's name, for a person."""
        return printable(self.volume.path.name)

    @property
    def run(self) -> str:
        """The run.

        Raises
        ------
        MissingInputError
            If there is none.
        """
        if self.name is None:
            raise MissingInputError(f"{self.volume.path}: has no run yet; make one with `kesm run {self.volume.path}`")
        return self.name

    @property
    def recipe(self) -> Recipe:
        """What made the mask, or what that was derived from; the default where there is no run."""
        run = None if self.name is None else source_run(self.volume, self.name)
        return Recipe() if run is None else Recipe.model_validate(RunTables(self.volume, run).recipe)

    @property
    def where(self) -> str:
        """The voxels, for a person."""
        whole = Box.whole(self.volume.shape)
        if self.box == whole:
            return "whole volume"
        z = self.box.start[0]
        return f"slice {z}" if self.box == Box.of_slice(z, self.volume.shape) else str(self.box)

    @property
    def elsewhere(self) -> str:
        """What to do about voxels that have nothing to show, as the end of a message."""
        return "" if self.box == Box.whole(self.volume.shape) else "; choose another --region"

    def require_truth(self, otherwise: str = "") -> str:
        """The truth; the message that there is none ends in what else can be done.

        Raises
        ------
        ConfigError, MissingInputError
            If there are several, or none.
        """
        if self.truth is None:
            self.volume.only_truth()  # refuses several
            raise MissingInputError(
                f"{self.volume.path}: has no truth, which this figure needs; add one with "
                f"`kesm ingest FILES --volume {self.volume.path} --label groundtruth`{otherwise}"
            )
        return self.truth

    def look(self, truth: str | None) -> Census:
        """What the run knows of the tiles, and of their comparison with a truth; what cannot be read is kept."""
        found = take_census(self.volume, RunTables(self.volume, self.run), truth, self.box)
        self.keep(found.damage)
        return found

    def keep(self, damage: Iterable[tuple[Box, str]]) -> None:
        """Keep what could not be read, to be told once."""
        self.damage.extend(part for part in damage if part not in self.damage)

    def census(self, truth: str | None) -> Census:
        """As `look`, of tiles of which some are done.

        Raises
        ------
        DamageError, MissingInputError
            If none of them is.
        """
        found = self.look(truth)
        found.require_done()
        return found


def find_subject(volume: Volume, request: Request, needs_run: bool) -> Subject:
    """Find out which run, truth and voxels are meant.

    Raises
    ------
    ConfigError
        If there are several, or more than one of region, slice and place are given.
    MissingInputError
        If there is none of that name.
    RegionError
        If the voxels lie outside.
    """
    name = _choose_run(volume, request.name, needs_run)
    return Subject(volume, name, _choose_truth(volume, name, request.truth), _choose_box(volume, request, name))


def _choose_run(volume: Volume, name: str | None, needed: bool) -> str | None:
    known = run_names(volume)
    if name is not None:
        kinds = {label.name: label.kind for label in volume.readable_labels().values()}
        if name not in known and kinds.get(name) != "derived":
            raise MissingInputError(
                f"{volume.path}: has no run {name!r}; it has: {', '.join(known) or 'none yet'}; make one with "
                f"`kesm run {volume.path} --name {name}`"
            )
        return name
    return choose_run(volume, None) if needed else latest_run(volume, known)


def _choose_truth(volume: Volume, name: str | None, truth: str | None) -> str | None:
    """The truth that is named, or the only one; of several the only one that the run was compared with; else None."""
    if truth is not None:
        volume.truth(truth)
        return truth
    known = volume.truths()
    if len(known) > 1 and name in run_names(volume):
        known = compared_truths(volume, RunTables(volume, str(name))) or known
    return known[0] if len(known) == 1 else None


def _choose_box(volume: Volume, request: Request, name: str | None) -> Box:
    given = {"--region": request.region, "--slice": request.z, "--at": request.at}
    both = [option for option, value in given.items() if value is not None]
    if {"--at"} < set(both) or (request.region is not None and request.z is not None and request.region.shape[0] == 1):
        raise ConfigError(f"{' and '.join(both)}: each says which voxels; leave all but one out")
    depth, height, width = volume.shape
    if request.at is not None:
        if not all(0 <= place < length for place, length in zip(request.at, volume.shape, strict=True)):
            raise RegionError(
                f"--at: got {','.join(map(str, request.at))}, the volume has z,y,x below {depth},{height},{width}"
            )
        side = Subject(volume, name, None, Box.whole(volume.shape)).recipe.tile
        z, y, x = request.at
        return Grid(volume.shape, (1, side, side)).box((z, y // side, x // side))
    if request.z is not None and not 0 <= request.z < depth:
        raise RegionError(f"--slice: got {request.z}, the volume has slices 0 to {depth - 1}")
    box = request.region or Box.whole(volume.shape)
    if request.z is not None:
        box = Box((request.z, *box.start[1:]), (request.z + 1, *box.stop[1:])) & box
        if not box.size:
            raise RegionError(f"--slice: got {request.z}, which is not in the region {request.region}")
    return box


def one_slice(subject: Subject, request: Request, kinds: Sequence[NDArray[np.bool_]]) -> Subject:
    """Choose the middle one of the slices that have something to show, unless one was asked for.

    Parameters
    ----------
    subject : Subject
    request : Request
    kinds : sequence of ndarray
        bool (z,) of the volume: whether a slice has each of the things that are shown.
    """
    box = subject.box
    if box.shape[0] == 1:
        return subject
    if request.region is not None and request.region.shape[0] < subject.volume.shape[0]:
        raise RegionError(
            f"--region: got {request.region}, {box.shape[0]} slices, and a picture shows one; choose it with --slice"
        )
    there = np.flatnonzero(np.logical_and.reduce([subject.volume.slices.present(), *kinds]))
    if not there.size:
        raise MissingInputError(
            f"{subject.volume.path}: no slice has all that this figure shows; see `kesm status {subject.volume.path}`"
        )
    z = int(there[len(there) // 2])
    return replace(subject, box=Box((z, *box.start[1:]), (z + 1, *box.stop[1:])))


def truth_slices(subject: Subject) -> list[NDArray[np.bool_]]:
    """Slices that the truth has, as `one_slice` takes them."""
    return [] if subject.truth is None else [subject.volume.truth(subject.truth)[1].present()]


def done_slices(subject: Subject) -> list[NDArray[np.bool_]]:
    """Slices of which the run has done some tiles."""
    volume = subject.volume
    if subject.run not in run_names(volume):
        return [volume.derived(subject.run)[1].present()]
    tables = RunTables(volume, subject.run)
    valid = valid_tiles(volume, tables, None, tables.grids.tiles.cover(Box.whole(volume.shape)))
    done: NDArray[np.bool_] = np.any(valid, axis=(1, 2))
    return [done]
