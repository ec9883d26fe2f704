"""What the viewer's server gives to browsers, and what it does not, asked over raw sockets."""

from __future__ import annotations

import errno
import http.client
import os
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis.strategies import integers

from pipeline.errors import ConfigError, MissingInputError
from pipeline.views import server as server_module
from pipeline.views.server import Site, ViewServer, byte_range, client_files

SECRET = b"nobody's business"
SHARD = np.random.default_rng(5).bytes(300_000)
PATIENCE_S = 20.0


@dataclass(frozen=True)
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


def read_reply(connection: socket.socket, method: str = "GET") -> Reply:
    response = http.client.HTTPResponse(connection, method=method)
    response.begin()
    with response:
        return Reply(response.status, response.headers, response.read())


def connect(server: ViewServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S)


def below(server: ViewServer, path: str) -> str:
    """A path behind the key; what is no path is left alone."""
    return f"/{server.key}{path}" if path.startswith("/") else path


def lines(path: str, method: str = "GET", **headers: str) -> bytes:
    fields = {"Host": "127.0.0.1"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return "\r\n".join([f"{method} {path} HTTP/1.1", *(": ".join(field) for field in fields.items()), "", ""]).encode()


def ask(server: ViewServer, path: str, method: str = "GET", **headers: str) -> Reply:
    """Ask once, with the key and exactly this path: nothing on the way tidies it up."""
    with connect(server) as connection:
        connection.sendall(lines(below(server, path), method, **headers))
        return read_reply(connection, method)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Folder with files where those of a volume are, and secrets in it and around it."""
    root = tmp_path / "brain.zarr"
    for name, data in {
        "zarr.json": b"{}", "0/zarr.json": b"[0]", "0/c/0/0/0": SHARD, "0/c/0/0/1": b"",
        "labels/zarr.json": b"[1]", "labels/otsu/zarr.json": b"[2]", "labels/a.b_c-1/0/c/3/0/12": b"mask",
    }.items():  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    for name in (
        ".hidden", "labels/.hidden/zarr.json", "zarr.json.partial", "0/c/0/0/0.partial", "0/c/0/0/7.0123.partial",
        "brain.zarr.lock", "runs/otsu/zarr.json", "tiles/otsu/status/c/0/0/0", "slices/image/zarr.json", "notes.txt",
        "../zarr.json", "../0/zarr.json", "../brain.zarr.lock", "../secret", "0/c/x/0/0", "client/zarr.json",
    ):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(SECRET)
    return root


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "POLL_S", 0.01)


@pytest.fixture
def server(store: Path) -> Iterator[ViewServer]:
    page = store.parent / "index.html"
    page.write_bytes(b"<!doctype html>")
    (store.parent / "main.js").write_bytes(b"'x'")
    site = Site(store, {path.name: path for path in (page, store.parent / "main.js")}, lambda root: f"{root}/v/#!x")
    with ViewServer(site) as server, server.serving():
        yield server


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        pytest.param("/volume/zarr.json", b"{}", "application/json", id="group"),
        pytest.param("/volume/0/zarr.json", b"[0]", "application/json", id="array"),
        pytest.param("/volume/0/c/0/0/0", SHARD, "application/octet-stream", id="shard"),
        pytest.param("/volume/0/c/0/0/1", b"", "application/octet-stream", id="empty file"),
        pytest.param("/volume/labels/zarr.json", b"[1]", "application/json", id="labels"),
        pytest.param("/volume/labels/otsu/zarr.json?a=b", b"[2]", "application/json", id="query is ignored"),
        pytest.param("/volume/labels/a.b_c-1/0/c/3/0/12", b"mask", "application/octet-stream", id="shard of a label"),
        pytest.param("/v/kesm/", b"<!doctype html>", "text/html; charset=utf-8", id="page"),
        pytest.param("/v/kesm/main.js", b"'x'", "text/javascript; charset=utf-8", id="script"),
    ],
)
def test_what_the_viewer_reads_is_served(server, path, body, kind):
    reply = ask(server, path)
    assert (reply.status, reply.body, reply.headers["Content-Type"]) == (200, body, kind)
    assert reply.headers["Accept-Ranges"] == "bytes"
    head = ask(server, path, "HEAD")
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", str(len(body)))


@pytest.mark.parametrize(
    "path",
    [
        "/volume/../zarr.json", "/volume/../secret", "/volume/..", "/volume/0/../../secret", "/../secret",
        "/v/../secret",
        "/volume/%2e%2e/secret", "/volume/%2E%2E%2Fsecret", "/volume/..%2fsecret", "/volume/..%5csecret",
        "/volume/..\\secret", "/volume/0/..;/..;/secret", "/volume//secret", "/volume/0//zarr.json",
        "//volume/../secret",
        "/volume/%00zarr.json", "/volume/zarr.json%00", "/volume/zarr.json\0", "/volume/0/c/0/0/0\0",
        "/volume/%252e%252e/secret",
        "/volume/{root}/zarr.json", "{root}/zarr.json", "/volume{root}/../secret", "/volume/file:{root}/../secret",
        "/volume/.hidden", "/volume/labels/.hidden/zarr.json", "/volume/zarr.json.partial", "/volume/0/c/0/0/0.partial",
        "/volume/0/c/0/0/7.0123.partial", "/volume/brain.zarr.lock", "/volume/../brain.zarr.lock",
        "/volume/runs/otsu/zarr.json", "/volume/tiles/otsu/status/c/0/0/0", "/volume/slices/image/zarr.json",
        "/volume/notes.txt", "/volume/0/c/x/0/0", "/volume/0/c/\u0661/0/0", "/volume/0/c/-1/0/0",
        "/volume/client/zarr.json",
        "/volume/labels/../zarr.json", "/volume/labels/../../zarr.json", "/volume/labels/../../0/zarr.json",
        "/volume", "/volume/", "/volume/0", "/volume/0/", "/volume/0/c", "/volume/labels", "/volume/labels/otsu/",
        "/volume/5/zarr.json", "/volume/0/c/0/0/0/", "/volume/0/c/0/0/0/0", "/volume/0/c/0/0/0/zarr.json",
        "/v/kesm/../../secret", "/v/kesm/brain.zarr/zarr.json", "/v/kesm/secret", "/v/kesm/%2e%2e/secret", "/v/kesm",
        "/v/other/", "/index.html", "/events/other", "*", "volume/zarr.json", "http://127.0.0.1/volume/zarr.json",
        "/volume/" + "0" * 5000 + "/zarr.json", "/volume/labels/" + "a" * 5000 + "/zarr.json",
    ],
)  # fmt: skip
def test_nothing_else_is(server, store, path):
    with connect(server) as connection:
        connection.sendall(lines(below(server, path.replace("{root}", str(store)))))
        reply = read_reply(connection)
    assert reply.status in (400, 404)
    assert SECRET not in reply.body
    assert str(store).encode() not in reply.body


@pytest.mark.parametrize("path", ["", "/", "/v/kesm/", "/volume/zarr.json", "/events/kesm", "/nothing"])
@pytest.mark.parametrize(
    "prefix",
    [
        pytest.param("", id="none"),
        pytest.param("/", id="empty"),
        pytest.param("/{wrong}", id="last letter"),
        pytest.param("/{key}x", id="longer"),
        pytest.param("/{short}", id="shorter"),
        pytest.param("/{lower}", id="other case"),
        pytest.param("/%{first:02x}{rest}", id="quoted"),
        pytest.param("/x/{key}", id="later"),
        pytest.param("/x/../{key}", id="dots"),
        pytest.param("/?{key}", id="query"),
        pytest.param("/\u00e9{rest}", id="not ASCII"),
    ],
)
def test_who_does_not_know_the_key_finds_nothing(server, prefix, path):
    key = server.key
    wrong = key[:-1] + ("A" if key[-1] == "B" else "B")
    asked = prefix.format(key=key, wrong=wrong, short=key[:-1], lower=key.swapcase(), first=ord(key[0]), rest=key[1:])
    for method in ("GET", "HEAD", "POST"):
        with connect(server) as connection:
            connection.sendall(lines(asked + path or "/", method))
            reply = read_reply(connection, method)
        assert reply.status == 404
        assert "Location" not in reply.headers
        assert key.encode() not in reply.body


def test_key_cannot_be_guessed(store):
    site = Site(store, {}, str)
    with ViewServer(site) as one, ViewServer(site) as other:
        assert one.key != other.key
        assert re.fullmatch(r"[A-Za-z0-9_-]{43}", one.key)  # 32 bytes


@pytest.mark.parametrize(
    ("key", "target", "status"),
    [
        pytest.param("0/c/1/0/0", "../../../../../secret", 404, id="out, relative"),
        pytest.param("0/c/1/0/0", "/etc/passwd", 404, id="out, absolute"),
        pytest.param("7/zarr.json", "../../zarr.json", 404, id="out, to a file of an allowed name"),
        pytest.param("7/zarr.json", "../runs/otsu/zarr.json", 404, id="to a document"),
        pytest.param("7/zarr.json", "../.hidden", 404, id="to a hidden file"),
        pytest.param("7/zarr.json", "nowhere", 404, id="dangling"),
        pytest.param("7/zarr.json", "zarr.json", 404, id="circle"),
        pytest.param("0/c/1/0/0", "..", 404, id="folder"),
        pytest.param("7/zarr.json", "../0/zarr.json", 200, id="to a file that is served"),
    ],
)
def test_links_lead_nowhere_else(server, store, key, target, status):
    (store / key).parent.mkdir(parents=True, exist_ok=True)
    (store / key).symlink_to(target)
    reply = ask(server, f"/volume/{key}")
    assert reply.status == status
    assert SECRET not in reply.body


def test_folder_that_is_a_link_leads_nowhere_else(server, store):
    (store.parent / "c" / "0" / "0").mkdir(parents=True)
    (store.parent / "c" / "0" / "0" / "0").write_bytes(SECRET)
    (store / "7").symlink_to(store.parent)
    assert ask(server, "/volume/7/zarr.json").status == 404
    assert ask(server, "/volume/7/c/0/0/0").status == 404


def test_what_is_no_file_is_not_waited_for(server, store):
    os.mkfifo(store / "0" / "c" / "0" / "0" / "5")
    (store / "labels" / "otsu" / "0" / "zarr.json").mkdir(parents=True)
    assert ask(server, "/volume/0/c/0/0/5").status == 404
    assert ask(server, "/volume/labels/otsu/0/zarr.json").status == 404


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        pytest.param("bytes=0-99", range(100), id="first"),
        pytest.param("bytes=100-100", range(100, 101), id="one byte"),
        pytest.param("bytes=299999-", range(299_999, 300_000), id="open end"),
        pytest.param("bytes=-36", range(299_964, 300_000), id="last"),
        pytest.param("bytes=-900000", range(300_000), id="more than there are, from the end"),
        pytest.param("bytes=299990-900000", range(299_990, 300_000), id="more than there are"),
        pytest.param("bytes=300000-", range(0), id="past the end"),
        pytest.param("bytes=300000-300001", range(0), id="all past the end"),
        pytest.param("bytes=-0", range(0), id="none"),
        pytest.param("bytes=5-2", None, id="backwards"),
        pytest.param("bytes=-", None, id="nothing"),
        pytest.param("bytes=0-1,5-6", None, id="several"),
        pytest.param("bytes=a-b", None, id="no numbers"),
        pytest.param("bytes=0-" + "9" * 5000, None, id="too long a number"),
        pytest.param("chunks=0-1", None, id="another unit"),
        pytest.param("", None, id="empty"),
    ],
)
def test_ranges(server, asked, expected):
    reply = ask(server, "/volume/0/c/0/0/0", Range=asked)
    if expected is None:
        assert (reply.status, reply.body) == (200, SHARD)
        assert reply.headers["Content-Range"] is None
    elif not expected:
        assert (reply.status, reply.headers["Content-Range"]) == (416, "bytes */300000")
    else:
        assert (reply.status, reply.body) == (206, SHARD[expected.start : expected.stop])
        assert reply.headers["Content-Range"] == f"bytes {expected.start}-{expected.stop - 1}/300000"
    assert ask(server, "/volume/0/c/0/0/0", "HEAD", Range=asked).status == 200


def test_browsers_learn_without_the_key_that_there_is_no_icon(server):
    with connect(server) as connection:
        connection.sendall(lines("/favicon.ico"))
        assert read_reply(connection).status == 204


@given(size=integers(0, 50), first=integers(0, 60), length=integers(1, 60))
def test_range_is_what_a_slice_is(size, first, length):
    data = bytes(range(size))
    for header, expected in (
        (f"bytes={first}-{first + length - 1}", data[first : first + length]),
        (f"bytes={first}-", data[first:]),
        (f"bytes=-{length}", data[-length:]),
    ):
        found = byte_range(header, size)
        assert found is not None
        assert bytes(data[at] for at in found) == expected


def test_a_file_that_has_changed_is_sent_again(server, store):
    path = store / "0" / "c" / "0" / "0" / "0"
    first = ask(server, "/volume/0/c/0/0/0")
    tag = first.headers["ETag"]
    assert first.headers["Cache-Control"] == "no-cache"
    for known in (tag, f'"other", W/{tag}', "*"):
        reply = ask(server, "/volume/0/c/0/0/0", If_None_Match=known)
        assert (reply.status, reply.body, reply.headers["ETag"]) == (304, b"", tag)
    assert ask(server, "/volume/0/c/0/0/0", If_Range=tag, Range="bytes=0-9").body == SHARD[:10]
    staged = path.with_name("staged")
    staged.write_bytes(SHARD[::-1])
    os.utime(staged, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    staged.replace(path)
    reply = ask(server, "/volume/0/c/0/0/0", If_None_Match=tag)
    assert (reply.status, reply.body) == (200, SHARD[::-1])
    reply = ask(server, "/volume/0/c/0/0/0", If_Range=tag, Range="bytes=0-9")
    assert (reply.status, reply.body) == (200, SHARD[::-1])  # not ten bytes of another shard
    path.unlink()
    assert ask(server, "/volume/0/c/0/0/0", If_None_Match=tag).status == 404


def test_a_connection_serves_many_requests(server):
    with connect(server) as connection:
        for path, method, status in (
            ("/volume/0/c/0/0/0", "HEAD", 200), ("/volume/0/c/9/0/0", "GET", 404), ("/volume/0/c/9/0/0", "HEAD", 404),
            ("/volume/0/c/0/0/0", "GET", 200), ("/", "HEAD", 302), ("/", "GET", 302),
        ):  # fmt: skip
            connection.sendall(lines(below(server, path), method))
            assert read_reply(connection, method).status == status


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_changed(server, store, method):
    reply = ask(server, "/volume/zarr.json", method, Origin="http://example.com")
    assert (reply.status, reply.headers["Allow"]) == (405, "GET, HEAD")
    assert (store / "zarr.json").read_bytes() == b"{}"


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        pytest.param(b"BREW /volume/zarr.json HTTP/1.1\r\nHost: localhost\r\n\r\n", 501, id="unknown method"),
        pytest.param(b"GET /volume/zarr.json HTTP/9.9\r\n\r\n", 505, id="unknown version"),
        pytest.param(b"GET\r\n\r\n", 400, id="no request"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 abc\r\n\r\n", 400, id="TLS"),
        pytest.param(b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", 414, id="long path"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", 431, id="long header"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: a\r\n" * 200 + b"\r\n", 431, id="many headers"),
    ],
)
def test_what_is_no_request_is_refused(server, raw, status, capfd):
    with connect(server) as connection:
        connection.sendall(raw)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert re.search(rb"(^HTTP/1\.1 |Error code: )%d" % status, answer)
    assert ask(server, "/volume/zarr.json").status == 200
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_body_is_no_second_request(server, method):
    second, path = lines(below(server, "/volume/labels/zarr.json")), below(server, "/volume/zarr.json")
    with connect(server) as connection:
        connection.sendall(lines(path, method, Content_Length=str(len(second))) + second)
        answer = bytearray()
        try:
            while part := connection.recv(65536):
                answer += part
        except ConnectionResetError:
            pass
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"[1]" not in answer


@pytest.mark.parametrize(
    ("host", "status"),
    [
        pytest.param("127.0.0.1:{port}", 302, id="address"),
        pytest.param("localhost:{port}", 302, id="name"),
        pytest.param("LocalHost", 302, id="no port"),
        pytest.param("localhost:9999", 302, id="port of a tunnel"),
        pytest.param("[::1]:{port}", 302, id="IPv6"),
        pytest.param("example.com", 403, id="foreign page"),
        pytest.param("example.com:{port}", 403, id="foreign page, right port"),
        pytest.param("127.0.0.1.example.com", 403, id="looks like an address"),
        pytest.param("localhost.example.com", 403, id="looks like the name"),
        pytest.param("localhost@example.com", 403, id="user"),
        pytest.param("[127.0.0.1", 403, id="half a bracket"),
        pytest.param("", 403, id="empty"),
        pytest.param('127.0.0.1"><script>', 403, id="markup"),
    ],
)
def test_only_names_of_this_machine_are_answered(server, host, status):
    host = host.format(port=server.port)
    for path in ("/", "/volume/zarr.json", "/v/kesm/", "/events/kesm"):
        if path == "/" or status == 403:
            assert ask(server, path, Host=host).status == status
    assert ask(server, "/", "HEAD", Host=host).headers["Location"] == (
        f"http://{host}/{server.key}/v/#!x" if status == 302 else None
    )


@pytest.mark.parametrize(
    "hosts", [b"", b"Host: localhost\r\nHost: example.com\r\n", b"Host: example.com\r\nHost: localhost\r\n"]
)
def test_one_host_must_be_named(server, hosts):
    with connect(server) as connection:
        connection.sendall(f"GET /{server.key}/volume/zarr.json HTTP/1.1\r\n".encode() + hosts + b"\r\n")
        reply = read_reply(connection)
    assert reply.status == 403
    assert server.key.encode() not in reply.body  # a foreign page may read this


def test_no_other_page_may_read_an_answer(server):
    for path in ("/", "/v/kesm/", "/volume/zarr.json", "/volume/nothing"):
        headers = ask(server, path, Origin="http://example.com").headers
        assert not [name for name in headers if name.lower().startswith("access-control")]
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["X-Content-Type-Options"] == "nosniff"
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'self';")
        assert "://" not in policy  # the page contacts nothing else


def test_a_browser_that_goes_away_harms_nobody(server, store, capfd):
    (store / "0" / "c" / "0" / "0" / "0").write_bytes(bytes(30_000_000))  # more than a socket buffers
    for _ in range(3):
        with connect(server) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, not a goodbye
            connection.sendall(lines(below(server, "/volume/0/c/0/0/0")))
            assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
        with connect(server) as connection:
            connection.sendall(b"GET /volu")
    assert ask(server, "/volume/zarr.json").status == 200
    assert capfd.readouterr() == ("", "")


def test_storage_that_fails_is_no_missing_chunk(server, monkeypatch):
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "bad sector")

    monkeypatch.setattr(server_module.os, "open", fail)
    assert ask(server, "/volume/0/c/0/0/0").status == 500


def test_client_holds_a_stream_until_the_server_ends(server):
    with connect(server) as connection:
        connection.sendall(lines(below(server, "/events/kesm?c=1")))
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert (response.status, response.headers["Content-Type"]) == (200, "text/event-stream")
        assert response.read1() == b":\n\n"  # a sign of life, which is no news
        begin = time.monotonic()
        server.closing.set()
        assert response.read() == b""
        assert time.monotonic() - begin < PATIENCE_S / 2
        response.close()


def test_port_that_is_taken(server):
    with pytest.raises(
        ConfigError, match=rf"^cannot listen on 127\.0\.0\.1, port {server.port}: .*in use; leave --port"
    ):
        ViewServer(server.site, port=server.port)


@pytest.mark.parametrize("host", ["192.0.2.1", "a" * 300, "\udcff"])
def test_host_that_is_not_this_machine(server, host):
    with pytest.raises(ConfigError, match=r"^cannot listen on .*, port 0: .+; leave --host out for this machine only$"):
        ViewServer(server.site, host=host)


@pytest.mark.parametrize(
    ("host", "root", "private"),
    [
        ("127.0.0.1", "http://127.0.0.1:", True),
        ("localhost", "http://localhost:", True),
        ("0.0.0.0", "http://127.0.0.1:", False),
    ],
)
def test_root(store, host, root, private):
    with ViewServer(Site(store, {}, str), host=host) as serving:
        assert (serving.root, serving.is_private) == (f"{root}{serving.port}/{serving.key}", private)


@pytest.mark.skipif(find_spec("neuroglancer") is None, reason="the extra `view` is not installed")
def test_client_is_found():
    files = client_files()
    assert files["index.html"].read_text().startswith("<!doctype html>")
    assert any(name.startswith("main.") and name.endswith(".js") for name in files)


@pytest.mark.parametrize("built", [False, True], ids=["not installed", "without the client"])
def test_client_that_is_not_installed(monkeypatch, tmp_path, built):
    class Found:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(server_module, "find_spec", lambda name: Found() if built else None)
    with pytest.raises(MissingInputError, match=r"install it with: pip install 'kesm-pipeline\[view\]'$"):
        client_files()
