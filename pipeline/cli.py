"""The command ``kesm``: parse, call one function, print.

The scientific stack takes seconds to import and ``kesm --help`` must not: every command imports what it needs when it
is called. This is the one module that does so.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from math import isfinite
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.ingest import Ingested
    from pipeline.plan import Plan
    from pipeline.sync import Synced

app = typer.Typer(
    help="Segment, validate and store Knife-Edge Scanning Microscopy volumes: exact, in one pass, in bounded memory.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

EXIT_UNEXPECTED, EXIT_INPUT, EXIT_PARTIAL, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 2, 3, 130, 143

WATCH_EVERY_S = 2.0

# What typer raises for an unknown option or command: click's own class, or that of its copy inside newer versions.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]
Target = Annotated[Path, typer.Argument(metavar="CONFIG|VOLUME", help="A YAML configuration, or a volume.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads to use; default one for each CPU.")]
Truth = Annotated[str | None, typer.Option(help="Label to compare the mask with.")]
Name = Annotated[str | None, typer.Option(help="Name of run and mask; default: the threshold's method.")]
Region = Annotated[str | None, typer.Option(help="Part of the volume, such as z=0:10,y=0:4096.")]
Memory = Annotated[str | None, typer.Option(help="Memory of the whole run, such as 4GB.")]
Scheduler = Annotated[str | None, typer.Option(help="threads, local, or tcp://host:port of a Dask scheduler.")]
Foreground = Annotated[str | None, typer.Option(help="Whether vessels are dark or bright.")]
Replace = Annotated[
    bool, typer.Option("--replace", help="Throw away a run of this name that was made with another recipe.")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any key of the configuration; may repeat.")
]


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    """Hold what every command understands."""
    if version:
        from importlib.metadata import version as package_version

        print(f"kesm {package_version('kesm-pipeline')}")
        raise typer.Exit


class Terminated(BaseException):
    """SIGTERM was received."""


def main() -> NoReturn:
    """Run the command line, and exit with its documented code."""

    def terminate(*_: object) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="kesm", standalone_mode=False)
    except UsageError as error:
        say(f"error: {usage_problem(error)}")
        code = EXIT_INPUT
    raise SystemExit(code or 0)


def usage_problem(error: Exception) -> str:
    """What is wrong with the words of a command line, in one line, and where the right ones are listed."""
    context: Any = getattr(error, "ctx", None)
    message = " ".join(str(getattr(error, "format_message", error.__str__)()).split()).rstrip(".")
    see = f"see `{context.command_path if context else 'kesm'} --help`"
    return f"{message} {see.capitalize()}" if message.endswith("?") else f"{message}; {see}"


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where its files go.")] = Path("kesm-demo"),
    as_json: Json = False,
) -> None:
    """Make a phantom volume, ingest it, segment it and report, in under a minute."""
    with answering():
        from pipeline.demo import Demo, run_demo
        from pipeline.terminal import Meter, show_summary

        summary = run_demo(folder, Meter)
        if as_json:
            print(json.dumps(summary.document()))
        else:
            files = Demo(folder)
            show_summary(summary)
            print(f"volume:  {files.volume} (OME-Zarr: napari, Neuroglancer and Fiji open it)")
            print(f"picture: {files.picture} (right in cyan, wrong in magenta and yellow)")
            print("next:")
            print(f"  kesm status {quote(str(files.volume))}")
            print(f"  kesm run {quote(str(files.volume))} --truth groundtruth --name raw --set denoise.method=none")
            print("  kesm ingest YOUR_SLICES --volume mine.zarr && kesm run mine.zarr")


@app.command()
def ingest(
    slices: Annotated[list[str], typer.Argument(help="Image files, folders, or patterns in quotes.")],
    volume: Annotated[Path, typer.Option(help="The OME-Zarr volume that they go to.")],
    label: Annotated[str | None, typer.Option(help="They are an expert's truth of this name, not the image.")] = None,
    channel: Annotated[
        str | None, typer.Option(help="Of colour images: red, green, blue, luminance, or a number from 0.")
    ] = None,
    voxel_size: Annotated[str | None, typer.Option(metavar="Z,Y,X", help="Size of a voxel in micrometres.")] = None,
    append: Annotated[bool, typer.Option("--append", help="Add slices after the last one of the volume.")] = False,
    start_z: Annotated[int | None, typer.Option(min=0, help="Label: the slice that the first file is for.")] = None,
    vessel_above: Annotated[float | None, typer.Option(help="Label: values above this level are vessel.")] = None,
    unlabelled: Annotated[int | None, typer.Option(help="Label: the value of what nobody annotated.")] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Store image slices, or an expert's truth, as OME-Zarr."""
    with answering():
        from pipeline.errors import ConfigError
        from pipeline.execute import ThreadRunner
        from pipeline.ingest import ingest_image, ingest_label, ingest_threads
        from pipeline.mapping import LabelOptions
        from pipeline.plan import available_cpus
        from pipeline.stack import find_pages
        from pipeline.terminal import Meter

        size = parse_voxel_size(voxel_size)
        check_ingest_options(label, {"--start-z": start_z, "--vessel-above": vessel_above, "--unlabelled": unlabelled})
        check_ingest_options(None if label else "image", {"--append": append or None, "--voxel-size": voxel_size})
        if vessel_above is not None and not isfinite(vessel_above):
            raise ConfigError(f"--vessel-above: got {vessel_above}, expected a grey level such as 127")
        pages = find_pages(slices, channel)
        each = pages[0].shape[0] * pages[0].shape[1] * (2 if pages[0].dtype == "uint16" else 1)
        workers = ingest_threads(pages[0], threads or available_cpus())
        with Meter(label or "image", unit_bytes=each) as meter:
            runner = ThreadRunner(workers, meter)
            if label is None:
                done = ingest_image(pages, volume, runner, size, append)
            else:
                done = ingest_label(pages, volume, runner, LabelOptions(label, start_z, vessel_above, unlabelled))
        show_ingested(done, as_json)


@app.command()
def run(
    target: Target,
    truth: Truth = None,
    name: Name = None,
    region: Region = None,
    threads: Threads = None,
    memory: Memory = None,
    scheduler: Scheduler = None,
    foreground: Foreground = None,
    assignments: Set = None,
    replace: Replace = False,
    as_json: Json = False,
) -> None:
    """Do everything of a run that is not done, and print its scores."""
    with answering():
        options = run_options(truth, name, region, threads, memory, foreground)
        config = configure(target, options, scheduler, assignments)
        from pipeline.plan import make_plan
        from pipeline.runs import run_plan
        from pipeline.terminal import Meter, show_summary

        plan = make_plan(config, replace=replace)
        try:
            with Meter(f"run {plan.name}", total=plan.blocks.size) as meter:
                summary = run_plan(plan, config.cluster, meter)
        except (KeyboardInterrupt, Terminated):
            say(stopped(plan))
            raise
        if as_json:
            print(json.dumps(summary.document()))
        else:
            show_summary(summary)
            print(f"mask: {plan.volume / 'labels' / plan.name}")
        if summary.tiles.failed:
            raise typer.Exit(EXIT_PARTIAL)


@app.command()
def plan(
    target: Target,
    truth: Truth = None,
    name: Name = None,
    region: Region = None,
    threads: Threads = None,
    memory: Memory = None,
    scheduler: Scheduler = None,
    foreground: Foreground = None,
    assignments: Set = None,
    replace: Replace = False,
    as_json: Json = False,
) -> None:
    """Say what a run would do; nothing is touched."""
    with answering():
        options = run_options(truth, name, region, threads, memory, foreground)
        config = configure(target, options, scheduler, assignments)
        from pipeline.plan import make_plan, tiles_done
        from pipeline.terminal import show_plan

        made = make_plan(config, replace=replace)
        done = tiles_done(made)
        if as_json:
            print(json.dumps(made.document() | {"tiles_done": done}))
        else:
            show_plan(made, done)


@app.command()
def compare(
    target: Target,
    methods: Annotated[str, typer.Option(help="Threshold methods, such as otsu,yen; default all.")] = "",
    scopes: Annotated[str, typer.Option(help="What shares a level: tile,slice,volume; default all.")] = "",
    denoise: Annotated[
        list[str] | None,
        typer.Option(help="A filter: none, median:5 or median:3,3,3; may repeat, and each costs a run."),
    ] = None,
    by: Annotated[str, typer.Option(help="Score that ranks: mcc or f1.")] = "mcc",
    folds: Annotated[int | None, typer.Option(help="Parts of the slices that are held out in turn.")] = None,
    write: Annotated[Path | None, typer.Option(help="Write the winner as a configuration for `kesm run`.")] = None,
    truth: Truth = None,
    name: Name = None,
    region: Region = None,
    threads: Threads = None,
    memory: Memory = None,
    scheduler: Scheduler = None,
    foreground: Foreground = None,
    assignments: Set = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the rows as CSV on stdout.")] = False,
    as_json: Json = False,
) -> None:
    """Judge every threshold method on the annotated tiles, and say which is best and how sure that is."""
    with answering():
        options = run_options(truth, name, region, threads, memory, foreground)
        config = configure(target, options, scheduler, assignments)
        from pipeline.choice import check_place, parse_contest, write_recipe
        from pipeline.choice import compare as compare_methods
        from pipeline.disk import disk_errors
        from pipeline.terminal import Meter, show_choice

        if write is not None:
            check_place(write)
        contest = parse_contest(config, words(methods), words(scopes), denoise or [], by, folds)
        choice = compare_methods(config, contest, lambda run_name: Meter(f"run {run_name}"))
        if write is not None:
            with disk_errors(write):
                write_recipe(choice, write)
        if as_json:
            print(json.dumps(choice.document()))
        elif as_csv:
            print(choice.table(), end="")
        else:
            show_choice(choice)
        if write is not None:
            say(f"wrote {write}; next: kesm run {quote(str(write))}")
        if choice.failed:
            raise typer.Exit(EXIT_PARTIAL)


@app.command()
def train(
    target: Target,
    out: Annotated[
        Path | None, typer.Option(help="File of the model, such as vessels.skops; default: that of the configuration.")
    ] = None,
    kind: Annotated[str, typer.Option(help="What is trained: forest or boosting.")] = "forest",
    seed: Annotated[int, typer.Option(min=0, help="The same one gives the same model.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace a model that is there.")] = False,
    truth: Truth = None,
    region: Region = None,
    threads: Threads = None,
    foreground: Foreground = None,
    assignments: Set = None,
    as_json: Json = False,
) -> None:
    """Train a classifier on the annotated tiles, and score it on some that are held out."""
    with answering():
        options = run_options(truth, None, region, threads, None, foreground)
        config = configure(target, options, None, assignments)
        from pipeline.execute import ThreadRunner
        from pipeline.plan import available_cpus
        from pipeline.terminal import Meter
        from pipeline.train import make_lesson
        from pipeline.train import train as train_classifier

        lesson, workers = make_lesson(config, out, kind, seed, force), threads or available_cpus()
        with Meter("train") as meter:
            trained = train_classifier(config, lesson, ThreadRunner(workers, meter), workers)
        if as_json:
            print(json.dumps(trained.document()))
        else:
            for line in trained.lines():
                print(line)


@app.command()
def sync(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML configuration with a section `sync`.")],
    every: Annotated[
        str | None, typer.Option(metavar="TIME", help="Again and again, such as every 15m, until SIGTERM or Ctrl-C.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Take the slices that have arrived in the source folders or changed, and run what is pending."""
    with answering():
        from pipeline.configfile import load_config
        from pipeline.sync import check_sync, sync_every
        from pipeline.sync import sync as sync_once
        from pipeline.terminal import Meter

        loaded = load_config(config)
        check_sync(loaded)
        if every is not None:
            sync_every(parse_every(every), loaded, lambda outcome: log_round(outcome, as_json))
        with Meter("sync") as meter:
            synced = sync_once(loaded, meter)
        if as_json:
            print(json.dumps(synced.document()))
        else:
            print(f"sync {synced.line()}")
            say_notes(synced)
        if synced.partial:
            raise typer.Exit(EXIT_PARTIAL)


@app.command()
def status(
    volume: Annotated[Path, typer.Argument(metavar="VOLUME", help="An OME-Zarr volume.")],
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Look again every two seconds, until Ctrl-C (which ends it with exit code 0)."),
    ] = False,
    run_name: Annotated[
        str | None, typer.Option("--provenance", metavar="NAME", help="Print what made the mask of this run instead.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a volume holds, how far each of its runs is, and who is working on it."""
    with answering(), suppress(KeyboardInterrupt) if watch else nullcontext():
        from pipeline.errors import ConfigError
        from pipeline.provenance import page, provenance
        from pipeline.report import describe
        from pipeline.terminal import show_page, show_status
        from pipeline.volume import Volume

        if watch and run_name is not None:
            raise ConfigError("--watch: not with --provenance, which does not change; leave one of them out")
        if watch:
            watch_status(volume, as_json)
        if run_name is None:
            document, summaries = describe(Volume(volume))
        else:
            document, summaries = provenance(Volume(volume), run_name), []
        if as_json:
            print(json.dumps(document))
        elif run_name is None:
            show_status(document, summaries)
        else:
            show_page(page(document))


def watch_status(volume: Path, as_json: bool) -> NoReturn:
    """Show a volume's status, every time opened anew, until a signal comes; as JSON, an object a line."""
    from pipeline.report import describe
    from pipeline.terminal import StatusBoard
    from pipeline.volume import Volume

    with nullcontext() if as_json else StatusBoard() as board:
        while True:
            document, summaries = describe(Volume(volume))
            if board is None:
                print(json.dumps(document), flush=True)
            else:
                board.show(document, summaries)
            time.sleep(WATCH_EVERY_S)


def parse_every(text: str) -> float:
    """``15m`` as seconds: at least one, since a sync that does nothing takes as long."""
    from pipeline.config import parse_duration
    from pipeline.errors import ConfigError

    try:
        every_s = parse_duration(text)
    except ValueError as error:
        raise ConfigError(f"--every: {error}") from error
    if every_s < 1:
        raise ConfigError(f"--every: got {text!r}, expected at least 1s")
    return every_s


def log_round(outcome: Synced | Exception, as_json: bool) -> None:
    """Log one round of many: its line (or JSON object) on stdout, what went wrong on stderr, each with its time."""
    from pipeline.errors import PipelineError
    from pipeline.lock import now

    if isinstance(outcome, PipelineError):
        say(f"{now()} error: {outcome}")
    elif isinstance(outcome, Exception):
        say(f"{now()} unexpected error: {type(outcome).__name__}: {outcome}")
    elif as_json:
        print(json.dumps(outcome.document()), flush=True)
    else:
        print(f"{now()} sync {outcome.line()}", flush=True)
        say_notes(outcome)


def say_notes(synced: Synced) -> None:
    """Say which files a round has not taken, and why."""
    for what, notes in (("waiting", synced.waiting), ("set aside", synced.set_aside)):
        for note in notes:
            say(f"{what}: {note.file}: {note.reason}")
    for what, taken in (("slice", synced.images), ("truth of slice", synced.truths)):
        for z, name in taken.vanished.items():
            say(f"vanished: {name}: {what} {z} stays as it is")


@app.command()
def clean(
    volume: Annotated[Path, typer.Argument(metavar="VOLUME", help="An OME-Zarr volume.")],
    name: Annotated[str, typer.Option(help="The run whose mask is cleaned; it keeps its own.")],
    min_size: Annotated[
        int, typer.Option(metavar="VOXELS", min=1, help="Objects of fewer voxels are removed, wherever they lie.")
    ],
    out: Annotated[str | None, typer.Option(help="Label that is made; default: NAME-clean.")] = None,
    max_hole: Annotated[
        int | None,
        typer.Option(metavar="VOXELS", min=1, help="Closed holes of at most so many voxels are filled; default none."),
    ] = None,
    connectivity: Annotated[int, typer.Option(help="Neighbours of a voxel of an object: 6, 18 or 26.")] = 26,
    hole_connectivity: Annotated[int, typer.Option(help="Neighbours of a voxel of a hole: 6, 18 or 26.")] = 6,
    partial: Annotated[
        bool, typer.Option("--partial", help="Leave out slices that the run has not done whole; else they are refused.")
    ] = False,
    threads: Threads = None,
    memory: Annotated[str | None, typer.Option(help="Memory of the whole process, such as 4GB.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Make a label again that was cleaned before.")] = False,
    as_json: Json = False,
) -> None:
    """Remove small objects of a mask, and fill small holes, in three dimensions; the result is a label of its own."""
    with answering():
        from pipeline.derived import Cleaning, slab_room
        from pipeline.derived import clean as clean_mask
        from pipeline.execute import ThreadRunner
        from pipeline.plan import available_cpus
        from pipeline.terminal import Meter
        from pipeline.volume import Volume

        cleaning = Cleaning(name, out or f"{name}-clean", min_size, max_hole, connectivity, hole_connectivity)
        opened, workers = Volume(volume), threads or available_cpus()
        room = slab_room(opened, workers, parse_memory(memory))
        with Meter("clean") as meter:
            cleaned = clean_mask(opened.path, cleaning, ThreadRunner(workers, meter), room, partial, replace)
        if as_json:
            print(json.dumps(cleaned.document()))
        else:
            for line in cleaned.lines():
                print(line)
            truths = [label.name for label in opened.labels().values() if label.kind == "truth"]
            for truth in truths[:1]:
                print(f"next: kesm validate {quote(str(volume))} --mask {cleaning.label} --truth {truth}")


def parse_memory(text: str | None) -> int | None:
    """``4GB`` in bytes."""
    from pipeline.config import parse_bytes
    from pipeline.errors import ConfigError

    try:
        return parse_bytes(text)
    except ValueError as error:
        raise ConfigError(f"--memory: {error}") from error


@app.command()
def verify(
    volume: Annotated[Path, typer.Argument(metavar="VOLUME", help="An OME-Zarr volume.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only report; else what a run must make again is marked as failed.")
    ] = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Read everything of a volume back, and list what is not as it was recorded."""
    with answering():
        from pipeline.execute import ThreadRunner
        from pipeline.plan import available_cpus
        from pipeline.terminal import Meter
        from pipeline.verify import slice_bytes, verify_threads
        from pipeline.verify import verify as verify_volume
        from pipeline.volume import Volume

        opened = Volume(volume)
        each, _ = slice_bytes(opened)
        with Meter("verify", unit_bytes=each) as meter:
            runner = ThreadRunner(verify_threads(opened, threads or available_cpus()), meter)
            verified = verify_volume(opened, runner, mark=not dry_run)
        for note in verified.notes:
            say(note)
        if as_json:
            print(json.dumps(verified.document()))
        else:
            for line in verified.lines():
                print(line)
        if verified.findings:
            raise typer.Exit(EXIT_PARTIAL)


@app.command()
def validate(
    volume: Annotated[Path, typer.Argument(metavar="VOLUME", help="An OME-Zarr volume.")],
    truth: Annotated[str, typer.Option(help="Label that is taken as right: 0 background, 127 not annotated, 255.")],
    more_files: Annotated[list[str] | None, typer.Argument(metavar="FILES", hidden=True)] = None,
    mask: Annotated[str | None, typer.Option(help="Label that is judged, whoever made it: 0 background.")] = None,
    mask_files: Annotated[
        list[str] | None,
        typer.Option(metavar="FILES...", help="Image files, folders or patterns that are judged, instead of a label."),
    ] = None,
    start_z: Annotated[
        int | None, typer.Option(min=0, help="Files: the slice that the first is for; default 0.")
    ] = None,
    boundary: Annotated[
        int | None,
        typer.Option(
            metavar="VOXELS",
            min=0,
            max=100,
            help="Compare outlines, too: how much of each is within so many voxels of the other. Each thread then "
            "holds its whole slice in memory, 2 bytes a voxel.",
        ),
    ] = None,
    cl_dice: Annotated[
        bool,
        typer.Option("--cl-dice", help="Compare centre lines, too (clDice); 6 bytes a voxel of a whole slice."),
    ] = False,
    undefined: Annotated[
        str, typer.Option(help="A score that is 0 / 0: article (1 if all is right, else the lowest), zero or nan.")
    ] = "article",
    region: Region = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Compare any two labels of a volume, or image files with one, and score them as a run is scored."""
    with answering():
        from pipeline.errors import ConfigError
        from pipeline.execute import ThreadRunner
        from pipeline.ingest import ingest_threads
        from pipeline.plan import available_cpus
        from pipeline.stack import find_pages
        from pipeline.terminal import Meter, score_rows, shape_lines, shape_rows, summary_rows
        from pipeline.validate import Measures, open_files, open_label, parse_undefined, validate_threads
        from pipeline.validate import validate as validate_labels
        from pipeline.volume import Volume

        if (mask is None) == (not mask_files):
            raise ConfigError(f"--mask, --mask-files: got {'both' if mask else 'neither'}, expected one of them")
        if mask is not None and (more_files or start_z is not None):
            raise ConfigError(f"{more_files[0] if more_files else '--start-z'}: only with --mask-files; leave it out")
        opened, measures = Volume(volume), Measures(parse_undefined(undefined), boundary, cl_dice)
        workers = validate_threads(opened, measures, threads or available_cpus())
        chosen = None if region is None else configure(volume, {"region": region}, None, None).region
        box = None if chosen is None else chosen.box(opened.shape)
        right = open_label(opened, truth, is_truth=True)
        if mask is None:
            pages = find_pages([*(mask_files or []), *(more_files or [])])
            judged, workers = open_files(opened, pages, start_z or 0), ingest_threads(pages[0], workers)
        else:
            judged = open_label(opened, mask, is_truth=False)
        with Meter("validate") as meter:
            validation = validate_labels(opened, judged, right, ThreadRunner(workers, meter), box, measures)
        summary = validation.summary
        if as_json:
            print(json.dumps(validation.document()))
        else:
            tiles = summary.macro.tiles if summary.macro else 0
            print(f"{judged.name} against {right.name}: volume, mean of {tiles} tiles")
            for title, *values in (*score_rows(summary), *shape_rows(validation), *summary_rows(summary)):
                print(f"{title:<18}" + "".join(f"{value:>24}" for value in values))
            for line in shape_lines(validation):
                print(line)
            for part, reason in summary.failures:
                print(f"failed: {part}: {reason}")
        if summary.tiles.failed:
            raise typer.Exit(EXIT_PARTIAL)


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
    from pipeline.configfile import load_config, parse_assignment

    overrides = {key: value for key, value in options.items() if value is not None}
    if scheduler in {"threads", "local"}:
        overrides["cluster.engine"] = scheduler
    elif scheduler is not None:
        overrides |= {"cluster.engine": "address", "cluster.address": scheduler}
    overrides |= dict(parse_assignment(assignment) for assignment in assignments or [])
    return load_config(target, overrides)


def words(text: str) -> list[str]:
    """``otsu, yen`` as its words."""
    return [word.strip() for word in text.split(",") if word.strip()]


def parse_voxel_size(text: str | None) -> tuple[float, float, float] | None:
    """``1,0.7,0.6`` as three lengths in micrometres."""
    from pipeline.errors import ConfigError

    if text is None:
        return None
    try:
        z, y, x = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--voxel-size: got {text!r}, expected z,y,x in micrometres, such as 1,0.7,0.6") from error
    if not all(0 < length < float("inf") for length in (z, y, x)):
        raise ConfigError(f"--voxel-size: got {text!r}, lengths must be positive")
    return z, y, x


def check_ingest_options(allowed: str | None, options: dict[str, Any]) -> None:
    """Refuse options that would be ignored: those of a label without one, and those of an image with one."""
    from pipeline.errors import ConfigError

    given = [option for option, value in options.items() if value is not None]
    if given and allowed is None:
        other = "only with --label NAME" if "--start-z" in options else "only without --label"
        raise ConfigError(f"{', '.join(given)}: {other}; leave it out")


def show_ingested(done: Ingested, as_json: bool) -> None:
    """Print what was written where."""
    first, last = min(done.slices), max(done.slices)
    if as_json:
        print(
            json.dumps(
                {
                    "schema": 1, "volume": str(done.volume), "label": done.label, "slices": list(done.slices),
                    "shape": list(done.shape), "placed": done.placed, "mapping": done.mapping or None,
                }
            )
        )  # fmt: skip
        return
    what = f"label {done.label}" if done.label else "image"
    count = f"{len(done.slices)} slices, {first} to {last}" if last > first else f"slice {first}"
    print(f"{what}: {count}, {done.placed}, in {done.volume}")
    if done.label is None:
        print(f"next: kesm run {quote(str(done.volume))}")
    else:
        print(f"next: kesm run {quote(str(done.volume))} --truth {done.label}")


def stopped(plan: Plan) -> str:
    """What an interrupted run has done."""
    from pipeline.errors import PipelineError
    from pipeline.report import summarise
    from pipeline.volume import Volume

    try:
        tiles = summarise(Volume(plan.volume), plan.name, plan.truth, plan.region).tiles
    except PipelineError:
        return "stopped before any block was done; give the same command to go on"
    return f"stopped: {tiles.done:,} of {tiles.total:,} tiles are done and kept; give the same command to go on"


@contextmanager
def answering() -> Iterator[None]:
    """Turn what went wrong into one message on stderr and the documented exit code."""
    from pipeline.errors import PipelineError

    try:
        yield
    except PipelineError as error:
        say(f"error: {error}")
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt as error:
        say("interrupted")
        raise typer.Exit(EXIT_INTERRUPTED) from error
    except Terminated as error:
        say("terminated")
        raise typer.Exit(EXIT_TERMINATED) from error
    except BrokenPipeError as error:  # the reader of stdout has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(EXIT_UNEXPECTED) from error


def say(message: str) -> None:
    """Print a message for a person; stdout belongs to results."""
    print(message, file=sys.stderr)
