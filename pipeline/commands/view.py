"""Command: look at a volume in a browser."""

from __future__ import annotations

import threading
import time
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.answer import answering, say, show_json, show_lines
from pipeline.commands.options import Json, LatestRun, VolumePath

WAIT_S = 0.5  # at a time: a signal that comes just before a sleep begins does not end it
TERMINAL_BROWSERS = {"elinks", "links", "lynx", "w3m", "www-browser"}  # they cannot draw it, and take the terminal


def view(
    volume: VolumePath,
    name: LatestRun = None,
    truth: Annotated[str | None, typer.Option(help="Truth to show; default: what the run was compared with.")] = None,
    at: Annotated[
        str | None, typer.Option(metavar="Z,Y,X", help="Voxel to look at first; default: the run's worst tile.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; default: a free one.")] = 0,
    host: Annotated[
        str, typer.Option(help="Address to listen on; the default is for this machine only.")
    ] = "127.0.0.1",
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the address.")] = False,
    as_json: Json = False,
) -> None:
    """Open a volume in Neuroglancer, in a browser, until Ctrl-C (which ends it with exit code 0)."""
    with answering():
        from pipeline.storage.volume import Volume
        from pipeline.views.server import Site, ViewServer, client_files
        from pipeline.views.view import make_view, parse_at

        client, place = client_files(), None if at is None else parse_at(at)
        made = make_view(Volume(volume), name, truth, place)
        for message in made.damage:
            say(f"note: {message}")
        with (
            ViewServer(Site(made.volume, client, made.url), host, port) as server,
            until_interrupted(),
            server.serving(),
        ):
            if as_json:
                where = {"url": made.url(server.root), "host": host, "port": server.port}
                show_json({"schema": 1, **where, **made.document()})
            else:
                show_lines(
                    f"{made.volume.name}: {made.legend}; at {made.sight.reason}",
                    f"viewer: {server.root}/ (until Ctrl-C)",
                    f"napari: {made.napari}",
                )
            if not server.is_private:
                say(f"note: other machines reach port {server.port}: whoever has the address sees the volume")
            if not no_browser:
                # In a thread of its own: some browsers answer only when they are closed.
                threading.Thread(target=open_browser, args=(f"{server.root}/",), daemon=True).start()
            while True:
                time.sleep(WAIT_S)


@contextmanager
def until_interrupted() -> Iterator[None]:
    """Take Ctrl-C for what it is here: the end."""
    try:
        yield
    except KeyboardInterrupt:
        say("viewer ended")


def open_browser(url: str) -> None:
    """Open a page in the browser of whoever sits at this machine, if there is one."""
    try:
        browser = webbrowser.get()
        opened = Path(browser.name).name not in TERMINAL_BROWSERS and browser.open(url)
    except (webbrowser.Error, OSError):
        opened = False
    if not opened:
        say(f"no browser was found here; open {url} in one")
