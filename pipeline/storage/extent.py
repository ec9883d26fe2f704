"""How many slices a volume has, and with it every label, ledger and table; a change that was cut off is completed."""

from __future__ import annotations

from pipeline.storage.tables import RunTables, run_names
from pipeline.storage.volume import Volume


def resize_volume(volume: Volume, slices: int) -> None:
    """Give a volume, and the tables of its runs, this many slices; none of them is ever shorter than the image."""
    shrinking = slices < volume.shape[0]
    if shrinking:
        volume.resize(slices)
    for name in run_names(volume):
        RunTables(volume, name).resize(slices)
    if not shrinking:
        volume.resize(slices)


def complete_resize(volume: Volume) -> None:
    """Complete a change of the number of slices that was cut off: the image decides."""
    lengths = {RunTables(volume, name).status.shape[0] for name in run_names(volume)}
    lengths |= {volume.label(info.name).full.shape[0] for info in volume.own_labels()}
    lengths |= volume.slices.lengths()
    for name in volume.truths():
        lengths |= volume.truth(name)[1].lengths()
    if lengths - {volume.shape[0]}:
        resize_volume(volume, volume.shape[0])
