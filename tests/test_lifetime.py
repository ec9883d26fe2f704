"""A volume over its life: slices come, change and go, truths and recipes too, syncs are killed; and it is always what
one that was made from scratch, of the same files, would be."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from PIL import Image

from pipeline.errors import MissingInputError
from pipeline.geometry import Box
from pipeline.intake.sync import sync
from pipeline.segmentation.runs import run
from pipeline.settings.configfile import load_config
from pipeline.storage.ledger import Ledger
from pipeline.storage.tables import run_names
from pipeline.storage.volume import Volume
from tests.builders import textured
from tests.crashing import arrays, start_sync

SHAPE = (90, 530)  # two tiles a slice, and a second level
SLICES = st.integers(0, 5)
CHANGES = st.dictionaries(SLICES, st.integers(0, 9), min_size=1, max_size=4)
WINDOWS = st.sampled_from([[1, 3, 3], [3, 3, 3], [1, 5, 5], [3, 1, 1]])  # flat ones leave the neighbours alone
CONFIG = """\
volume: brain.zarr
name: {name}
truth: traced
denoise: {{size: {window}}}
sync:
  images: {{folder: images, number: '(\\d+)'}}
  truth: {{folder: traced, number: '(\\d+)'}}
  settle: 0s
"""


class Lab:
    """A folder with source folders, a configuration and a volume."""

    def __init__(self, folder: Path, name: str = "first", window: Sequence[int] = (1, 3, 3)) -> None:
        self.folder, self.name = folder, name
        self.windows = {name: list(window)}
        for source in ("images", "traced"):
            (folder / source).mkdir(parents=True)

    @property
    def config(self) -> Path:
        """The configuration, for the run and the recipe that hold now."""
        path = self.folder / "sync.yaml"
        path.write_text(CONFIG.format(name=self.name, window=self.windows[self.name]))
        return path

    def file(self, source: str, z: int) -> Path:
        """Where the file of a slice is, if it is there."""
        return self.folder / source / f"{z}.png"

    def volume(self) -> Volume | None:
        """The volume, once there is one."""
        try:
            return Volume(self.folder / "brain.zarr")
        except MissingInputError:
            return None

    def ledgers(self) -> dict[str, Ledger]:
        """Records of image and truth."""
        volume = self.volume()
        if volume is None:
            return {}
        known = {"images": volume.slices}
        return known | ({"traced": volume.truth("traced")[1]} if "traced" in volume.labels() else {})


class Lifetime(RuleBasedStateMachine):
    """What may happen to a volume, in any order."""

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        self.lab, self.taken = Lab(self.root / "lab"), Lab(self.root / "taken")
        self.clock = 10**18

    def teardown(self) -> None:
        try:
            self.sync()
        finally:
            shutil.rmtree(self.root)

    @rule(changes=CHANGES)
    def put_slices(self, changes: dict[int, int]) -> None:
        for z, seed in changes.items():
            self._save(self.lab.file("images", z), textured(np.random.default_rng(seed), SHAPE))

    @rule(changes=CHANGES)
    def trace_slices(self, changes: dict[int, int]) -> None:
        for z, seed in changes.items():
            drawn = np.random.default_rng(seed).choice(np.array([0, 255], np.uint8), SHAPE)
            self._save(self.lab.file("traced", z), drawn)

    @rule(source=st.sampled_from(["images", "traced"]), z=SLICES)
    def lose_file(self, source: str, z: int) -> None:
        self.lab.file(source, z).unlink(missing_ok=True)

    @rule(name=st.sampled_from(["first", "second", "third"]), window=WINDOWS)
    def change_run(self, name: str, window: list[int]) -> None:
        self.lab.name = name
        self.lab.windows.setdefault(name, window)

    @rule(window=WINDOWS)
    def replace_run(self, window: list[int]) -> None:
        self.lab.windows[self.lab.name] = window
        volume = self.lab.volume()
        if volume is None or self.lab.name not in run_names(volume):
            return
        config = load_config(self.lab.config)
        traced = config.truth in volume.labels()
        done = run(config if traced else config.model_copy(update={"truth": None}), replace=True)
        assert done.tiles.failed == done.tiles.pending == 0

    @rule(changes=CHANGES, at=st.integers(1, 60), lose=st.booleans())
    def kill_sync(self, changes: dict[int, int], at: int, lose: bool) -> None:
        self.put_slices(changes)
        process = start_sync(self.lab.config, self.root / "log", at)
        process.join(60)
        assert process.exitcode in (0, -9)
        self._note_taken()
        if lose:  # with the process, the files that it has not taken: nothing is left to do but to clear up
            volume = self.lab.volume()
            present = np.zeros(0, np.bool_) if volume is None else volume.slices.present()
            mtimes = np.zeros(0, np.int64) if volume is None else volume.slices.mtimes_ns()
            for z in changes:
                file = self.lab.file("images", z)
                if z >= present.size or not present[z] or mtimes[z] != file.stat().st_mtime_ns:
                    file.unlink()
            self.sync()

    @rule()
    def sync(self) -> None:
        done = sync(load_config(self.lab.config))
        assert done.set_aside == ()
        assert done.run is None or done.run.tiles.failed == done.run.tiles.pending == 0
        again = sync(load_config(self.lab.config))
        assert (again.images.added, again.images.replaced, again.truths.added, again.truths.replaced) == ((),) * 4
        assert again.run is None or again.run.tiles.reused == again.run.tiles.done
        self._note_taken()
        self._check_like_new()

    def _save(self, path: Path, pixels: np.ndarray) -> None:
        Image.fromarray(pixels).save(path)
        self.clock += 10**9  # a time of its own, however fast this is
        os.utime(path, ns=(self.clock, self.clock))

    def _note_taken(self) -> None:
        """Keep a copy of the file that each slice of the volume was made from."""
        for source, ledger in self.lab.ledgers().items():
            present, mtimes = ledger.present(), ledger.mtimes_ns()
            for z in range(6):
                file, kept = self.lab.file(source, z), self.taken.file(source, z)
                if z >= present.size or not present[z]:
                    kept.unlink(missing_ok=True)  # lost with the process that was killed while it was replaced
                elif file.exists() and file.stat().st_mtime_ns == mtimes[z]:
                    shutil.copy2(file, kept)

    def _check_like_new(self) -> None:
        if not list((self.taken.folder / "images").iterdir()):  # all lost: then there is nothing to compare with
            volume = self.lab.volume()
            if volume is not None and self.lab.name in run_names(volume):
                found = arrays(volume.path, self.lab.name, None)
                assert not found["status"].any()
                assert not found["level 0"].any()
            return
        fresh = Lab(self.root / "fresh", self.lab.name, self.lab.windows[self.lab.name])
        try:
            for source in ("images", "traced"):
                shutil.copytree(self.taken.folder / source, fresh.folder / source, dirs_exist_ok=True)
            sync(load_config(fresh.config))
            ours, theirs = _decoded(self.lab), _decoded(fresh)
            for name, values in theirs.items():
                # A killed sync may leave slices at the end that do not exist yet.
                np.testing.assert_array_equal(ours[name][: len(values)], values, err_msg=name)
            assert not ours["status"][len(theirs["status"]) :].any()
        finally:
            shutil.rmtree(fresh.folder)


def _decoded(lab: Lab) -> dict[str, np.ndarray]:
    """Every array of the store that the present recipe has a say in."""
    volume = lab.volume()
    assert volume is not None
    traced = "traced" if "traced" in volume.labels() else None
    found = arrays(volume.path, lab.name, traced)
    for source, ledger in lab.ledgers().items():
        # What a killed sync has left of a slice that is gone with its file nobody reads, nor a truth without its image.
        here = ledger.present() & volume.slices.present()
        digests = ledger.shard_digests() * here[:, None, None]
        found |= {f"{source} digests": digests, f"{source} mtimes": ledger.mtimes_ns() * here}
        pyramid = volume.image if source == "images" else volume.label("traced")
        for level, array in enumerate(pyramid.levels):
            found[f"{source} {level}"] = array.read(Box.whole(array.shape)) * here[:, None, None]
    return found


def live(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        Lifetime,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_volume_is_always_as_if_made_from_scratch() -> None:
    live(examples=4, steps=8)


@pytest.mark.slow
def test_a_volume_is_always_as_if_made_from_scratch_over_many_lives() -> None:
    live(examples=60, steps=25)
