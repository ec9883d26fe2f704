"""What a report says of how a run went: quality of the image, failures, provenance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from pipeline.webpage.markup import Markup, command_code, count, facts, join, left_out, number, table, tag
from pipeline.webpage.page import Page

SHOWN_FAILURES, SHOWN_ATTEMPTS, SHOWN_SLICES = 100, 20, 200


def image_quality(page: Page) -> Markup:
    """Tiles and slices that are unlike the others."""
    flagged = page.flagged
    if flagged is None:
        return tag("p", "This run has not measured the quality of the image.")
    total = page.summary.tiles.done
    body = [[name, count(tiles), f"{100 * tiles / max(1, total):.2f} %"] for name, tiles in flagged.tiles.items()]
    said = (
        "A tile is flagged where one of its measures is unlike those of the other tiles of its slice, a slice where it "
        "is unlike the other slices. A flag is a hint to look, not a fault."
    )
    made = [tag("p", said), table("Tiles by flag", ["Flag", "Tiles", "Of those done"], body, class_="numbers")]
    slices = [[z, words] for z, words in flagged.slices[:SHOWN_SLICES]]
    if slices:
        made.append(table(f"Slices that are flagged: {len(flagged.slices):,}", ["Slice", "Unusual"], slices))
        made += left_out(len(flagged.slices), SHOWN_SLICES, "slices")
    else:
        made.append(tag("p", "No slice as a whole is flagged."))
    return join(made)


def outcome(page: Page) -> Markup:
    """How many tiles are done, what failed and why, and how well tiles and slices fit together."""
    summary = page.summary
    document = summary.document()
    words = {
        "total": "Tiles", "done": "done", "failed": "failed", "pending": "not done", "absent": "in absent slices",
        "undecided": "done, but the method found no level", "no_signal": "done, but without a signal",
    }  # fmt: skip
    pairs: list[tuple[object, object]] = [
        (name, count(document["tiles"][key], f"tiles.{key}"))
        for key, name in words.items()
        if document["tiles"][key] or key in ("total", "done", "failed", "pending")
    ]
    made: list[Markup] = [facts(pairs)]
    seam = document["seam"]
    if seam is not None and seam["score"] is not None:
        said = ": the mask changes so many times as often across the borders of tiles as inside of them. 1 is no seams."
        made.append(tag("p", "Seam score ", number(seam["score"], f"{seam['score']:.2f}", "seam.score"), said))
    drift = document["drift"]
    if drift is not None:
        made.append(tag("p", f"The level of the volume is {drift['level']}; all slices done so far would give "
                        f"{drift['now']}."))  # fmt: skip
    if summary.failures:
        body = [[str(box), reason] for box, reason in summary.failures[:SHOWN_FAILURES]]
        made.append(table(f"Failures: {len(summary.failures):,}", ["Voxels", "Reason"], body, id="failures"))
        made += left_out(len(summary.failures), SHOWN_FAILURES, "failures")
        made.append(tag("p", "The same kesm run again does what has failed, and nothing else."))
    else:
        made.append(tag("p", "Nothing has failed."))
    if page.problems:
        body = [[problem] for problem in page.problems[:SHOWN_FAILURES]]
        made.append(table(f"Cannot be read: {len(page.problems):,}", ["What"], body, id="unreadable"))
        made += left_out(len(page.problems), SHOWN_FAILURES, "of them")
        made.append(tag("p", "What depends on these is missing from this page."))
    return join(made)


def origin(page: Page) -> Markup:
    """What the mask was made from and with, by whom and when."""
    made = [tag("h3", "Recipe"), tag("pre", yaml.safe_dump(page.recipe, sort_keys=False))]
    attempts = page.attempts
    if not attempts:
        return join([*made, tag("p", "No attempt at this run is recorded.")])
    latest = attempts[-1]
    if "problem" in latest:
        made.append(tag("p", f"What the mask was made from and with cannot be read: {latest['problem']}"))
    pairs: list[tuple[object, object]] = []
    for key, name in (("inputs", "Digest of the {}"), ("packages", "{}")):
        known = latest.get(key) or {}
        pairs += [(name.format(word), tag("code", value)) for word, value in known.items() if value is not None]
    made += [tag("h3", "Made from and with"), facts(pairs)] if pairs else []
    body = [_attempt(attempt) for attempt in attempts[-SHOWN_ATTEMPTS:]]
    head = ["Attempt", "Who", "Begun", "Ended", "Outcome", "Command"]
    made.append(table("Attempts, oldest first", head, body, id="attempts"))
    made += left_out(len(attempts), SHOWN_ATTEMPTS, "attempts, older ones,")
    return join(made)


def _moment(text: str) -> str:
    return text.replace("T", " ").replace("+00:00", " UTC")


def _attempt(attempt: Mapping[str, Any]) -> list[object]:
    if "problem" in attempt:
        return [attempt["number"], "cannot be read", "", "", "", ""]
    return [
        attempt.get("number", ""), f"{attempt.get('user', 'unknown')} on {attempt.get('host', 'unknown')}",
        _moment(attempt.get("started", "unknown")), _moment(attempt.get("ended", "not recorded")),
        attempt.get("ending", "not recorded"),
        command_code(attempt.get("command", [])),
    ]  # fmt: skip
