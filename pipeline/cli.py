"""The command ``kesm``: its commands in the order of the help, and how it ends."""

from __future__ import annotations

import signal
import sys
from typing import Annotated, Any, NoReturn

import typer

from pipeline.commands.answer import EXIT_INPUT, Terminated, say
from pipeline.commands.clean import clean
from pipeline.commands.compare import compare
from pipeline.commands.demo import demo
from pipeline.commands.export import export
from pipeline.commands.figure import figure
from pipeline.commands.ingest import ingest
from pipeline.commands.report import report
from pipeline.commands.run import plan, run
from pipeline.commands.status import status
from pipeline.commands.sync import sync
from pipeline.commands.tables import tables
from pipeline.commands.train import train
from pipeline.commands.validate import validate
from pipeline.commands.verify import verify
from pipeline.commands.view import view

app = typer.Typer(
    help="Segment, validate and store Knife-Edge Scanning Microscopy volumes: exact, in one pass, in bounded memory.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# What typer raises for an unknown option or command: click's own class, or that of its copy inside newer versions.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]

for command in (
    demo,
    ingest,
    run,
    plan,
    compare,
    train,
    sync,
    status,
    clean,
    verify,
    validate,
    figure,
    report,
    view,
    export,
    tables,
):
    app.command()(command)


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    """Hold what every command understands."""
    if version:
        from importlib.metadata import version as package_version

        print(f"kesm {package_version('kesm-pipeline')}")
        raise typer.Exit


def main() -> NoReturn:
    """Run the command line, and exit with its documented code."""

    def terminate(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not break off what the first one ends
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
