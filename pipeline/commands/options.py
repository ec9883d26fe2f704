"""Options that several commands share, and the configuration that they make."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pipeline.geometry import Box
    from pipeline.settings.config import RunConfig
    from pipeline.storage.volume import Volume

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]
VolumePath = Annotated[Path, typer.Argument(metavar="VOLUME", help="An OME-Zarr volume.")]
Target = Annotated[Path, typer.Argument(metavar="CONFIG|VOLUME", help="A YAML configuration, or a volume.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads to use; default one for each CPU.")]
Truth = Annotated[str | None, typer.Option(help="Label to compare the mask with.")]
OnlyTruth = Annotated[str | None, typer.Option(help="The truth; default: the only one.")]
Name = Annotated[str | None, typer.Option(help="Name of run and mask; default: the threshold's method.")]
LatestRun = Annotated[str | None, typer.Option(help="The run; default: that which was worked on last.")]
Region = Annotated[str | None, typer.Option(help="Part of the volume, such as z=0:10,y=0:4096.")]
Memory = Annotated[str | None, typer.Option(help="Memory of the whole run, such as 4GB.")]
Scheduler = Annotated[str | None, typer.Option(help="threads, local, or tcp://host:port of a Dask scheduler.")]
Foreground = Annotated[str | None, typer.Option(help="Whether vessels are dark or bright.")]
UndefinedRule = Annotated[
    str, typer.Option(help="A score that is 0 / 0: article (1 if all is right, else the lowest), zero or nan.")
]
Replace = Annotated[
    bool, typer.Option("--replace", help="Throw away a run of this name that was made with another recipe.")
]
ExcludeFlagged = Annotated[
    bool,
    typer.Option(
        "--exclude-flagged",
        help="Leave tiles that quality control has flagged out of the scores, and say how many those are.",
    ),
]
Confusion = Annotated[
    bool,
    typer.Option(
        "--confusion",
        help="Write the label NAME-confusion, too: where the mask is right, wrong, or misses what is in the truth.",
    ),
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any key of the configuration; may repeat.")
]


def run_options(
    truth: str | None,
    name: str | None,
    region: str | None,
    threads: int | None,
    memory: str | None,
    foreground: str | None,
) -> dict[str, Any]:
    """Options of a run by their keys in a configuration."""
    return {
        "truth": truth, "name": name, "region": region, "cluster.threads": threads, "memory": memory,
        "foreground": foreground,
    }  # fmt: skip


def configure(
    target: Path, options: Mapping[str, Any], scheduler: str | None, assignments: list[str] | None
) -> RunConfig:
    """Configuration of a run: the file, then the options that were given (by their keys), then each ``--set``."""
    from pipeline.settings.configfile import load_config, parse_assignment

    overrides = {key: value for key, value in options.items() if value is not None}
    if scheduler in {"threads", "local"}:
        overrides["cluster.engine"] = scheduler
    elif scheduler is not None:
        overrides |= {"cluster.engine": "address", "cluster.address": scheduler}
    overrides |= dict(parse_assignment(assignment) for assignment in assignments or [])
    return load_config(target, overrides)


def with_truth(config: RunConfig) -> RunConfig:
    """Configuration of what needs a truth: with that which it names, or the only one of its volume."""
    from pipeline.errors import MissingInputError
    from pipeline.storage.volume import Volume

    volume = Volume(config.volume)
    if config.truth is not None:
        return config
    truth = volume.only_truth()
    if truth is None:
        raise MissingInputError(
            f"{volume.path}: has no truth; bring one in with `kesm ingest FILES --volume {volume.path} --label NAME`"
        )
    return config.model_copy(update={"truth": truth})


def region_box(text: str | None, volume: Volume) -> Box | None:
    """``z=0:10`` as voxels of a volume."""
    region = None if text is None else configure(volume.path, {"region": text}, None, None).region
    return None if region is None else region.box(volume.shape)


def refuse_together(given: Mapping[str, bool]) -> None:
    """Refuse two options of which one at most can be followed."""
    from pipeline.errors import ConfigError

    options = [option for option, there in given.items() if there]
    if len(options) > 1:
        raise ConfigError(f"{options[0]}: not with {options[1]}; leave one of them out")


def refuse_beside(given: Mapping[str, bool], why: str) -> None:
    """Refuse options that would be ignored."""
    from pipeline.errors import ConfigError

    options = [option for option, there in given.items() if there]
    if options:
        raise ConfigError(f"{', '.join(options)}: {why}; leave {'it' if len(options) == 1 else 'them'} out")


def expect_one(given: Mapping[str, bool]) -> None:
    """Refuse anything but one of two options."""
    from pipeline.errors import ConfigError

    if sum(given.values()) != 1:
        got = "both" if all(given.values()) else "neither"
        raise ConfigError(f"{', '.join(given)}: got {got}, expected one of them")


def parse_memory(text: str | None) -> int | None:
    """``4GB`` in bytes."""
    from pipeline.errors import ConfigError
    from pipeline.settings.config import parse_bytes

    try:
        return parse_bytes(text)
    except ValueError as error:
        raise ConfigError(f"--memory: {error}") from error
