"""Text that drives no terminal: names of users, hosts, files and runs, and what others' programs say, hold anything."""

from __future__ import annotations


def printable(line: str) -> str:
    """Text without the characters that would move the cursor or colour what follows, in one line."""
    joined = " ".join(line.splitlines())
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in joined)


def printable_lines(text: str) -> str:
    """Text whose lines are `printable`; only a line feed ends one."""
    return "\n".join(map(printable, text.split("\n")))
