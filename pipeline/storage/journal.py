"""What happened to a run: its attempts, what the one at work says of itself, and the blocks that failed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.geometry import Box, Triple
from pipeline.storage.store import create_document, group_names, read_document


class Journal:
    """Documents of one run, which any process may read while another one writes.

    Parameters
    ----------
    path : Path
        Folder of the documents of the run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path) -> Journal:
        """Begin that of a run of which nothing has happened yet."""
        for documents in ("failures", "attempts"):
            create_document(path / documents, {})
        return cls(path)

    def record_failure(
        self, block: Triple, parts: Sequence[tuple[Box, str]], truth: str | None = None, trace: str = ""
    ) -> None:
        """Keep which voxels of a block failed, and why; with a truth, only their comparison with it has."""
        document = {"truth": truth, "parts": [[part.start, part.stop, reason] for part, reason in parts]}
        if trace:
            document["traceback"] = trace
        create_document(self._failure(block, truth), document)

    def clear_failure(self, block: Triple, truth: str | None) -> None:
        """Forget why a block, and its comparison with a truth, failed, once they are done."""
        for folder in {self._failure(block, None), self._failure(block, truth)}:
            shutil.rmtree(folder, ignore_errors=True)

    def failures(self, truth: str | None) -> Iterator[tuple[Box, str]]:
        """Voxels whose mask, or comparison with a truth, failed, and why."""
        for name in group_names(self.path / "failures"):
            document = read_document(self.path / "failures" / name) or {}
            for start, stop, reason in document.get("parts", []):
                if document["truth"] in (None, truth):
                    yield Box(tuple(start), tuple(stop)), reason

    def begin_attempt(self, attempt: dict[str, Any]) -> int:
        """Append who starts to work on the run, with what, and return the number of the attempt."""
        known = self.attempt_names()
        number = int(known[-1]) + 1 if known else 0
        create_document(self._attempt(number), {"number": number, **attempt})
        return number

    def end_attempt(self, number: int, outcome: dict[str, Any]) -> None:
        """Append how an attempt ended, beside its beginning: neither is ever written again."""
        create_document(self._attempt(number) / "end", outcome)

    def attempts(self) -> list[dict[str, Any]]:
        """Every attempt, oldest first; one that was killed, or is at work, has no ``ended``."""
        return [self.attempt(name) for name in self.attempt_names()]

    def attempt_names(self) -> list[str]:
        """Names of the attempts, oldest first: their numbers with six digits."""
        return group_names(self.path / "attempts")

    def latest_attempt(self) -> dict[str, Any] | None:
        """The last of them: there may be thousands."""
        names = self.attempt_names()
        return self.attempt(names[-1]) if names else None

    def beat(self, heartbeat: dict[str, Any]) -> None:
        """Replace what the process at work says of itself every few seconds."""
        create_document(self.path / "heartbeat", heartbeat)

    def heartbeat(self) -> dict[str, Any] | None:
        """What the process at work, or the last one, has said of itself."""
        return read_document(self.path / "heartbeat")

    def attempt(self, name: str) -> dict[str, Any]:
        """What is recorded of the attempt of this name."""
        folder = self.path / "attempts" / name
        return {**(read_document(folder) or {}), **(read_document(folder / "end") or {})}

    def _failure(self, block: Triple, truth: str | None) -> Path:
        place = "-".join(map(str, block))
        return self.path / "failures" / (place if truth is None else f"{place}.{truth}")

    def _attempt(self, number: int) -> Path:
        return self.path / "attempts" / f"{number:06d}"
