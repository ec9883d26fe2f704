"""Commands as users give them, and what they answer."""

from __future__ import annotations

import contextlib
import io
import json
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline import cli

KESM = Path(sys.executable).with_name("kesm")


@dataclass(frozen=True)
class Answer:
    """What a command has answered."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The JSON object on stdout, where nothing else may be."""
        document = json.loads(self.out)
        assert isinstance(document, dict)
        return document

    @property
    def message(self) -> str:
        """The one message about bad input."""
        assert self.code == 2, self
        assert self.out == ""
        assert "Traceback" not in self.err
        before, _, message = f"\n{self.err}".partition("\nerror: ")
        assert all(re.match(r"[\w ]+: \d+/\d+, ", line) for line in before.split("\n") if line), before  # progress
        assert message.endswith("\n"), self.err
        assert "\nerror: " not in message
        return message.rstrip("\n")


def kesm(*words: object) -> Answer:
    """Run a command in this process, as its entry point does."""
    out, err = io.StringIO(), io.StringIO()
    arguments, handler = sys.argv, signal.getsignal(signal.SIGTERM)
    sys.argv = ["kesm", *map(str, words)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        sys.argv = arguments
        signal.signal(signal.SIGTERM, handler)
    assert isinstance(ended.value.code, int)
    return Answer(ended.value.code, from_here(out.getvalue()), from_here(err.getvalue()))


def kesm_process(*words: object) -> Answer:
    """Run a command as its users do."""
    done = subprocess.run([KESM, *map(str, words)], capture_output=True, text=True, timeout=120, check=False)
    return Answer(done.returncode, from_here(done.stdout), from_here(done.stderr))


def from_here(text: str) -> str:
    """Text with its paths as they were typed; a volume is named by its whole path, wherever the tests run."""
    return text.replace(f"{Path.cwd()}/", "")
