"""What a mask was made from, by whom, where, when and how: the document that other programs read, and the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from shlex import join
from typing import Any

import yaml

from pipeline.errors import MissingInputError
from pipeline.findings.activity import State, attempt_state
from pipeline.findings.summary import SCHEMA, summarise
from pipeline.storage.tables import RunTables, run_names
from pipeline.storage.volume import Volume


def provenance(volume: Volume, name: str, now: datetime | None = None) -> dict[str, Any]:
    """Provenance of a run, and so of its mask, as the JSON object of the command line.

    Parameters
    ----------
    volume : Volume
    name : str
    now : datetime, optional
        With a time zone.

    Returns
    -------
    dict
        Inputs, truth and packages are those of the latest attempt, counts and scores those of all tiles that are done
        now. Attempts are as they were recorded, oldest first, each with its ``state``; what an older version has not
        recorded is not there.

    Raises
    ------
    MissingInputError
        If the volume has no such run.
    """
    if name not in run_names(volume):
        known = ", ".join(run_names(volume)) or "none yet"
        raise MissingInputError(f"{volume.path}: has no run {name!r}; it has: {known}")
    tables = RunTables(volume, name)
    attempts = _attempts(tables, now or datetime.now(UTC))
    latest = attempts[-1] if attempts else {}
    truth = latest.get("truth")
    summary = summarise(volume, name, truth if truth in tables.truths() and truth in volume.readable_labels() else None)
    return {
        "schema": SCHEMA,
        "volume": str(volume.path),
        "name": name,
        "recipe": tables.recipe,
        "block": list(tables.block),
        "truth": truth,
        "inputs": latest.get("inputs"),
        "packages": latest.get("packages"),
        "tiles": asdict(summary.tiles),
        "counts": None if summary.counts is None else asdict(summary.counts),
        "scores": None if summary.scores is None else asdict(summary.scores),
        "attempts": attempts,
    }


def _attempts(tables: RunTables, now: datetime) -> list[dict[str, Any]]:
    """Every attempt with what has become of it; only the latest can be at work, for a run has one worker at a time."""
    beat, attempts = tables.journal.heartbeat() or {}, tables.journal.attempts()
    told = []
    for position, attempt in enumerate(attempts):
        heard = beat if beat.get("attempt") == attempt.get("number") else {}
        state = attempt_state(attempt, heard, now)
        if state is State.RUNNING and position + 1 < len(attempts):
            state = State.KILLED
        told.append({"number": position, "state": state, **attempt})
    return told


def page(document: Mapping[str, Any]) -> str:
    """The document of `provenance` as text for people."""
    return "\n".join(_lines(document))


def _lines(document: Mapping[str, Any]) -> Iterator[str]:
    yield f"run {document['name']} of {document['volume']}"
    yield "recipe:"
    for line in yaml.safe_dump(document["recipe"], sort_keys=False).splitlines():
        yield f"  {line}"
    yield f"block: {' x '.join(map(str, document['block']))} voxels (z, y, x)"
    yield from _facts(document, "")
    for attempt in document["attempts"]:
        yield f"attempt {attempt['number']}: {attempt.get('ending') or attempt['state']}"
        yield from _attempt_lines(attempt, document)


def _attempt_lines(attempt: Mapping[str, Any], document: Mapping[str, Any]) -> Iterator[str]:
    """What is known of an attempt; what is as it stands above is left out."""
    yield f"  who: {attempt.get('user', '?')} on {attempt.get('host', '?')}" + "".join(
        f", {word} {attempt[key]}" for key, word in (("process", "process"), ("engine", "engine")) if key in attempt
    )
    ended = f" to {attempt['ended']}" if "ended" in attempt else ""
    took = f", {attempt['elapsed_s']:.1f} s" if attempt.get("elapsed_s") is not None else ""
    yield f"  when: {attempt.get('started', '?')}{ended}{took}"
    if "command" in attempt:
        yield f"  command: {join(attempt['command'])}"
    if "region" in attempt:
        yield f"  region: {attempt['region']}"
    if attempt.get("recipe", document["recipe"]) != document["recipe"]:
        yield "  recipe:"
        yield from (f"    {line}" for line in yaml.safe_dump(attempt["recipe"], sort_keys=False).splitlines())
    same = {key for key in ("inputs", "packages") if attempt.get(key) == document[key]}
    yield from _facts({key: value for key, value in attempt.items() if key not in same}, "  ")


def _facts(known: Mapping[str, Any], indent: str) -> Iterator[str]:
    """Lines of what is known of inputs, packages and outcome."""
    if "truth" in known:
        yield f"{indent}truth: {known['truth'] or 'none'}"
    for key in ("inputs", "packages", "tiles", "counts", "scores"):
        values = {word: value for word, value in (known.get(key) or {}).items() if value is not None}
        if values:
            yield f"{indent}{key}: " + ", ".join(f"{word} {_figure(value)}" for word, value in values.items())


def _figure(value: object) -> str:
    """A count with its thousands apart, a score in full; digests and versions as they are."""
    return f"{value:,}" if isinstance(value, int) else str(value)
