"""What users and their files are called drives no terminal."""

from __future__ import annotations

import pytest

from pipeline.commands.answer import say, show, show_lines
from pipeline.printable import printable, printable_lines
from tests.builders import build_volume
from tests.command import kesm


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a µm ü 脑.png", "a µm ü 脑.png"),
        ("\x1b[2J\a\r", "\ufffd[2J\ufffd"),
        ("a\nb\x85c\u2028d\x0be\r\nf", "a b c d e f"),
        ("no UTF-8: \udcff", "no UTF-8: \ufffd"),
        ("\u202egnp.exe", "\ufffdgnp.exe"),
    ],
    ids=["letters", "controls", "ends of lines", "bytes", "direction"],
)
def test_line_without_what_drives_a_terminal(text, shown):
    assert printable(text) == shown


def test_lines_end_where_a_line_feed_is():
    assert printable_lines("first\n\x1bsecond\r\n") == "first\n\ufffdsecond\n"


def test_messages_and_results_drive_no_terminal(capsys):
    class Found:
        def document(self) -> dict[str, str]:
            return {"name": "\x1b[2J"}

        def lines(self) -> list[str]:
            return ["found \x1b[2J", "more\nhere"]

    say("a\x1b[2J\nb")
    show(Found(), as_json=False)
    show(Found(), as_json=True)
    show_lines()
    done = capsys.readouterr()
    assert done.err == "a\ufffd[2J\nb\n"
    assert done.out == 'found \ufffd[2J\nmore here\n{"name": "\\u001b[2J"}\n'


def test_commands_print_no_name_as_it_is(tmp_path):
    evil = tmp_path / "a\x1b[31mb"
    evil.mkdir()
    volume = build_volume(evil / "brain.zarr", (2, 64, 64))
    out = evil / "tiles.csv"
    for words in (
        ("run", volume.path, "--name", "otsu", "--truth", "groundtruth"),
        ("plan", volume.path, "--name", "li", "--set", "threshold.method=li"),
        ("tables", volume.path, "--out", out),
        ("tables", volume.path, "--out", out),
        ("status", volume.path, "--json"),
        ("status", volume.path, "--provenance", "otsu"),
        ("clean", volume.path, "--name", "otsu", "--min-size", 3),
        ("export", volume.path, "--image", "--out", evil / "slices"),
        ("figure", "overlay", volume.path, "--out", evil / "o.png"),
        ("figure", "overlay", evil / "none.zarr"),
        ("run", volume.path, f"--{evil}"),
    ):
        answer = kesm(*words)
        assert "b" in answer.out + answer.err
        assert "\x1b" not in answer.out + answer.err
