"""A volume over its life: slices come, change and go, truths and recipes too, syncs are killed; and it is always what
one that was made from scratch, of the same files, would be."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from PIL import Image

from pipeline.configfile import load_config
from pipeline.errors import MissingInputError
from pipeline.geometry import Box
from pipeline.sync import sync
from pipeline.volume import Ledger, Volume
from tests.builders import textured
from tests.crashing import arrays, start_sync

SHAPE = (90, 530)  # two tiles a slice, and a second level
SLICES = st.integers(0, 5)
CHANGES = st.dictionaries(SLICES, st.integers(0, 9), min_size=1, max_size=4)
CONFIG = """\
volume: brain.zarr
name: s{size}
truth: traced
denoise: {{size: [3, {size}, {size}]}}
sync:
  images: {{folder: images, number: '(\\d+)'}}
  truth: {{folder: traced, number: '(\\d+)'}}
  settle: 0s
"""


class Lab:
    """A folder with source folders, a configuration and a volume."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.size = folder, 3
        for source in ("images", "traced"):
            (folder / source).mkdir(parents=True)

    @property
    def config(self) -> Path:
        """The configuration, for the recipe that holds now."""
        path = self.folder / "sync.yaml"
        path.write_text(CONFIG.format(size=self.size))
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
            if list((self.lab.folder / "images").iterdir()):
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

    @rule(size=st.sampled_from([1, 3, 5]))
    def change_recipe(self, size: int) -> None:
        self.lab.size = size

    @precondition(lambda self: list((self.lab.folder / "images").iterdir()))
    @rule(at=st.integers(1, 60))
    def kill_sync(self, at: int) -> None:
        process = start_sync(self.lab.config, self.root / "log", at)
        process.join(60)
        assert process.exitcode in (0, -9)
        self._note_taken()

    @precondition(lambda self: list((self.lab.folder / "images").iterdir()))
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
        fresh = Lab(self.root / "fresh")
        fresh.size = self.lab.size
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
    found = arrays(volume.path, f"s{lab.size}", traced)
    for source, ledger in lab.ledgers().items():
        found |= {f"{source} digests": ledger.shard_digests(), f"{source} mtimes": ledger.mtimes_ns()}
        pyramid = volume.image if source == "images" else volume.label("traced")
        for level, array in enumerate(pyramid.levels):
            found[f"{source} {level}"] = array.read(Box.whole(array.shape))
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
    live(examples=6, steps=10)


@pytest.mark.slow
def test_a_volume_is_always_as_if_made_from_scratch_over_many_lives() -> None:
    live(examples=150, steps=25)
