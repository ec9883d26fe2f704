"""Serve a volume and the viewer's client to browsers: read only, and nothing but what the viewer reads.

Any user of this machine can connect, so every path begins with a key that only who was told the address knows. Any web
page may let a browser send requests to this machine. So a request must name a host that no foreign page can have
(against DNS rebinding), answers are for pages of this server only, and its own page may contact nothing else.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from secrets import compare_digest, token_urlsafe
from socketserver import TCPServer, ThreadingMixIn
from typing import BinaryIO

from pipeline.errors import ConfigError, MissingInputError

VOLUME, CLIENT, EVENTS = "/volume/", "/v/kesm/", "/events/kesm"  # the client itself asks for `v/` and `events/`

IDLE_S = 60.0  # after which a connection that asks for nothing is closed
BEAT_S, LOOK_S = 15.0, 0.5  # between two signs of life on a stream, and between two looks whether it is needed
POLL_S = 0.1  # between two looks whether the server is to end

# Metadata and shards of the image and its labels: no tables, documents, lock or half-written files, and so no `..`.
_LABEL = r"labels/[A-Za-z0-9][A-Za-z0-9._-]*/"
_KEY = re.compile(
    rf"((labels/)?|{_LABEL})zarr\.json|({_LABEL})?[0-9]+/(zarr\.json|c/[0-9]+/[0-9]+/[0-9]+)",
    re.ASCII,
)
_CLIENT_FILE = re.compile(r"[a-z0-9][A-Za-z0-9_.-]*\.(css|html|js|map|wasm)", re.ASCII)
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?", re.ASCII)
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.ASCII)

_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "map": "application/json",
    "wasm": "application/wasm",
}
_HEADERS = {
    "Cache-Control": "no-cache",  # kept, but asked for each time: slices arrive and runs go on
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-eval'; worker-src 'self' blob:; "  # its zstd decoder makes code
        "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; connect-src 'self' data: blob:; "
        "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}


def client_files() -> dict[str, Path]:
    """Files of the viewer by name; the package that ships them is found, not imported: it brings a server of its own.

    Raises
    ------
    MissingInputError
        If it is not installed.
    """
    found = find_spec("neuroglancer")
    for place in (found and found.submodule_search_locations) or ():
        folder = Path(place) / "static" / "client"
        files = {path.name: path.resolve() for path in folder.glob("*") if _CLIENT_FILE.fullmatch(path.name)}
        if "index.html" in files:
            return files
    raise MissingInputError("Neuroglancer is not installed; install it with: pip install 'kesm-pipeline[view]'")


def byte_range(header: str | None, size: int) -> range | None:
    """Bytes that a ``Range`` header asks for, of so many.

    Returns
    -------
    range or None
        Empty where none of them is there; None, which means all of them, for a header that may be ignored: there is
        none, it is malformed, or it asks for several ranges.
    """
    match = _RANGE.fullmatch(header or "")
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        return range(max(size - int(last), 0), size)
    if last and int(last) < int(first):
        return None
    return range(int(first), min(int(last) + 1, size) if last else size)


@dataclass(frozen=True)
class Site:
    """What is served.

    Attributes
    ----------
    volume : Path
        Folder of the store, resolved.
    client : mapping
        Files of the viewer by name.
    start : callable
        Gives, by the root that the browser sees (``http://127.0.0.1:8000/KEY``), the address where it starts.
    """

    volume: Path
    client: Mapping[str, Path]
    start: Callable[[str], str]

    def file(self, path: str) -> Path | None:
        """The file behind a path after the key, if it is one that is served."""
        if path.startswith(VOLUME):
            return self._stored(path.removeprefix(VOLUME))
        return self.client.get(path.removeprefix(CLIENT) or "index.html") if path.startswith(CLIENT) else None

    def _stored(self, key: str) -> Path | None:
        if not _KEY.fullmatch(key):
            return None
        try:
            path = (self.volume / key).resolve(strict=True)
        except (OSError, RuntimeError):  # of these, the second is for links in a circle
            return None
        # A link may lead to another file that is served, and nowhere else.
        inside = path.is_relative_to(self.volume) and _KEY.fullmatch(path.relative_to(self.volume).as_posix())
        return path if inside else None


class ViewServer(ThreadingMixIn, TCPServer):
    """HTTP server of one site; a request that is cut off harms no other.

    Parameters
    ----------
    site : Site
    host : str
        Name or address of this machine.
    port : int
        0 for one that is free.

    Raises
    ------
    ConfigError
        If it cannot listen there.
    """

    daemon_threads = True
    allow_reuse_address = os.name == "posix"  # elsewhere it lets two programs share a port
    request_queue_size = 64

    def __init__(self, site: Site, host: str = "127.0.0.1", port: int = 0) -> None:
        self.site, self.host, self.closing = site, host, threading.Event()
        self.key = token_urlsafe()
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            self.address_family, _, _, _, address = found[0]
            super().__init__((str(address[0]), int(address[1])), Handler)
        except (OSError, OverflowError, UnicodeError) as error:
            way_out = "leave --port out to take a free one" if port else "leave --host out for this machine only"
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"cannot listen on {host}, port {port}: {reason}; {way_out}") from error
        self.port: int = self.server_address[1]
        self._names = {"localhost", host.lower(), socket.gethostname().lower()}

    @property
    def root(self) -> str:
        """Where a browser on this machine finds it, and who does not know this finds nothing."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/{self.key}"

    @property
    def is_private(self) -> bool:
        """Whether only this machine reaches it."""
        return ip_address(str(self.server_address[0]).partition("%")[0]).is_loopback

    def knows(self, host: str) -> bool:
        """Whether a ``Host`` header is of this machine: one of its names, or an address, which no other name is."""
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match["name"].lower()
        try:
            ip_address(name.strip("[]"))
        except ValueError:
            return name in self._names
        return True

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Answer meanwhile, in other threads: a signal, which comes to the first one, cuts no request in two."""
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": POLL_S}, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.shutdown()
            thread.join()

    def server_close(self) -> None:
        """Stop listening, and end the streams."""
        self.closing.set()
        super().server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say what went wrong, unless the browser has only gone away."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class Handler(BaseHTTPRequestHandler):
    """One connection of a browser."""

    server: ViewServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else the body waits for the answer to the header, 40 ms
    timeout = IDLE_S

    def do_GET(self) -> None:
        """Answer with a file, a part of it, or where to start."""
        if self._check_request():
            if self.path == EVENTS:
                self._hold()
            else:
                self._answer()

    def do_HEAD(self) -> None:
        """Answer as to GET, without the body."""
        if self._check_request():
            self._answer()

    def do_POST(self) -> None:
        """Refuse: nothing here can be changed."""
        self.close_connection = True  # its body is not read
        if self._check_request():
            self._say(HTTPStatus.METHOD_NOT_ALLOWED, "read only", {"Allow": "GET, HEAD"})

    do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_POST  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Print nothing: a browser asks for hundreds of chunks a second."""

    def version_string(self) -> str:
        """Name of this server; its version is nobody's business."""
        return "kesm"

    def end_headers(self) -> None:
        """Add what goes with every answer."""
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def _check_request(self) -> bool:
        """Refuse a request that is not for this server; cut key and query off the path of any other one."""
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # a body is not read
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or not self.server.knows(hosts[0]):
            self._say(
                HTTPStatus.FORBIDDEN,
                "not a name of this server; open the address that it has printed, or start it with --host NAME",
            )
            return False
        self.path = self.path.partition("?")[0]
        if self.path == "/favicon.ico":  # browsers ask for it unasked, without the key
            self._head(HTTPStatus.NO_CONTENT, {})
            return False
        key, _, path = self.path.removeprefix("/").partition("/")
        if not compare_digest(key.encode(), self.server.key.encode()):  # its time does not tell how much of it is right
            self._say(HTTPStatus.NOT_FOUND, "not found; open the address that `kesm view` has printed")
            return False
        self.path = f"/{path}"
        return True

    def _answer(self) -> None:
        if self.path == "/":
            start = self.server.site.start(f"http://{self.headers['Host']}/{self.server.key}")
            self._say(HTTPStatus.FOUND, "see there", {"Location": start})
        else:
            self._answer_file(self.server.site.file(self.path))

    def _answer_file(self, path: Path | None) -> None:
        try:
            file = None if path is None else _open(path)
        except OSError:  # it is there, but the storage does not give it
            self._say(HTTPStatus.INTERNAL_SERVER_ERROR, "cannot be read")
            return
        if path is None or file is None:
            self._say(HTTPStatus.NOT_FOUND, "not found")
            return
        with file:
            self._send(file, _TYPES.get(path.suffix.removeprefix("."), "application/octet-stream"))

    def _send(self, file: BinaryIO, kind: str) -> None:
        """Send a file, the part of it that was asked for, or that it has not changed."""
        state = os.fstat(file.fileno())
        size = state.st_size
        tag = f'"{state.st_ino:x}-{state.st_mtime_ns:x}-{size:x}"'  # a shard is replaced by another file
        headers = {"Content-Type": kind, "ETag": tag, "Accept-Ranges": "bytes"}
        known = self.headers.get("If-None-Match", "")
        if known == "*" or tag in [each.strip().removeprefix("W/") for each in known.split(",")]:
            self._head(HTTPStatus.NOT_MODIFIED, headers)
            return
        is_part = self.command == "GET" and self.headers.get("If-Range", tag) == tag
        part = byte_range(self.headers.get("Range"), size) if is_part else None
        if part is None:
            part = range(size)
            self._head(HTTPStatus.OK, {**headers, "Content-Length": str(size)})
        elif not part:
            self._say(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "no such bytes", {"Content-Range": f"bytes */{size}"})
            return
        else:
            span = {"Content-Range": f"bytes {part.start}-{part.stop - 1}/{size}", "Content-Length": str(len(part))}
            self._head(HTTPStatus.PARTIAL_CONTENT, {**headers, **span})
        if part and self.command == "GET":
            sent = 0
            with suppress(OSError):  # the browser no longer wants it, or the storage gives no more
                sent = self.connection.sendfile(file, part.start, len(part))
            self.close_connection |= sent < len(part)

    def _hold(self) -> None:
        """Keep the stream open on which the client awaits news: it complains when it is closed, and there are none."""
        self.close_connection = True
        self._head(HTTPStatus.OK, {"Content-Type": "text/event-stream", "Connection": "close"})
        self.connection.settimeout(LOOK_S)
        beat = time.monotonic()
        with suppress(ConnectionError):
            while not self.server.closing.is_set():
                try:
                    if not self.connection.recv(1024):
                        return
                except TimeoutError:
                    if time.monotonic() >= beat:
                        self.connection.sendall(b":\n\n")
                        beat = time.monotonic() + BEAT_S

    def _say(self, status: HTTPStatus, message: str, headers: Mapping[str, str] | None = None) -> None:
        body = f"{message}\n".encode()
        about = {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(body))}
        self._head(status, {**about, **(headers or {})})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: HTTPStatus, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection and "Connection" not in headers:
            self.send_header("Connection", "close")
        self.end_headers()


def _open(path: Path) -> BinaryIO | None:
    """Open a file that may be gone, replaced, or no file at all: a pipe would never answer."""
    flags = (getattr(os, name, 0) for name in ("O_BINARY", "O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"))
    try:
        handle = os.open(path, os.O_RDONLY | sum(flags))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return os.fdopen(handle, "rb", buffering=0)
    os.close(handle)
    return None
