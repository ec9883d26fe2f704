"""A report as one HTML file that needs nothing else: no network, no other file, no clock."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.findings.summary import Summary
from pipeline.geometry import Box
from pipeline.kernels.bins import WINDOWED_LEVELS
from pipeline.kernels.confusion import SCORES
from pipeline.kernels.flags import Flag
from pipeline.methods.comparison import LEAST_SLICES, Place, describe
from pipeline.webpage.account import image_quality, origin, outcome
from pipeline.webpage.display import colour_filter, first_cell, picture_display, tile_display, view_line
from pipeline.webpage.markup import Markup, bar, count, escape, facts, island, join, left_out, number, score, table, tag
from pipeline.webpage.page import Page, flag_words
from pipeline.webpage.plots import curve_charts, histogram_chart, profile_charts
from pipeline.webpage.tilemap import STATES
from pipeline.webpage.verdict import RULES, undefined_scores, verdict
from pipeline.webpage.wording import MEANINGS, SCORE_NAMES, level_words, recipe_sentences

SHOWN_SLICES = 2000
_STATE_TITLE = "What is done, and what failed"
_HEADLINE = ("mcc", "f1", "precision", "recall", "accuracy")


def render(page: Page) -> str:
    """Write the report of a run."""
    sections = [
        ("what", "What was done", _what(page)),
        ("scores", "Scores", _scores(page)),
        ("slices", "From slice to slice", _slices(page)),
        ("tiles", "Every tile", tile_display(page)),
        ("pictures", "Tiles to look at", picture_display(page)),
        ("levels", "Grey levels and curves", _levels(page)),
        ("methods", "Other methods", _methods(page)),
        ("quality", "Quality of the image", image_quality(page)),
        ("state", _STATE_TITLE, outcome(page)),
        ("provenance", "Provenance", origin(page)),
    ]
    shown = [(name, title, content) for name, title, content in sections if content]
    summary = page.summary
    links = tag("ul", *(tag("li", tag("a", title, href=f"#{name}")) for name, title, _ in shown))
    body = [
        tag("header", tag("h1", page.title), tag("p", _subtitle(page), class_="soft"),
            tag("nav", links, aria_label="Contents")),
        tag("main", *_unfinished(summary), _headline(summary), *(_section(*section) for section in shown), id="main"),
        colour_filter(),
        tag("footer", tag("p", f"Made by kesm report from {page.volume['path']}.", class_="soft")),
    ]  # fmt: skip
    return fill_template(_tab_title(page), body, _data(page))


def _tab_title(page: Page) -> str:
    """What no other page has: many volumes have one name, and a run may have been compared with several truths."""
    against = f", compared with {page.summary.truth}" if page.summary.truth else ""
    return f"{page.title}{against}: report, {page.volume['path']}"


def fill_template(title: str, body: Iterable[Markup], data: Mapping[str, Any]) -> str:
    """Put a page together; its policy lets nothing run or load but what is in it."""
    folder = files("pipeline.webpage") / "templates"
    template, style, script = ((folder / name).read_text("utf-8") for name in ("page.html", "report.css", "report.js"))
    return Template(template).substitute(
        title=escape(title), style=style, script=script, style_hash=_hash(style), script_hash=_hash(script),
        body=join(body, "\n"), data=island(data),
    )  # fmt: skip


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _data(page: Page) -> dict[str, Any]:
    """What the page's program needs, and the summary for other programs."""
    (z, y, x), profile, group = first_cell(page), page.profile, page.tile_map.group
    return {
        "summary": page.summary.document(),
        "shape": page.volume["shape"],
        "voxel_size_um": page.volume["voxel_size_um"],
        "view": view_line(page.volume["path"], page.summary.name, page.summary.truth),
        "start": [z, y // group, x // group],
        "states": STATES,
        "flags": [flag_words(flag) for flag in Flag],
        "map": page.tile_map.document(),
        "profile": {
            "mcc": _nullable(profile.score("mcc")),
            "middle": _nullable(profile.middle),
            "vessel": _nullable(profile.vessel),
            "undefined": page.without_mcc.tolist(),
        },
    }


def _nullable(values: NDArray[np.float64]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]


def _section(name: str, title: str, content: Markup) -> Markup:
    return tag("section", tag("h2", title, id=f"{name}-title"), content, id=name, aria_labelledby=f"{name}-title")


def _subtitle(page: Page) -> str:
    z, y, x = page.volume["shape"]
    against = f"compared with {page.summary.truth}" if page.summary.truth else "not compared with a truth"
    return f"{z:,} slices of {y:,} × {x:,} voxels, {against}"


def _unfinished(summary: Summary) -> list[Markup]:
    """Say first that not all is done, or numbers of a part are read as those of the whole."""
    tiles = summary.tiles
    if not tiles.failed and not tiles.pending:
        return []
    states = (
        ("tiles.failed", tiles.failed, " failed"), ("tiles.pending", tiles.pending, " not done, or changed since"),
        ("tiles.absent", tiles.absent, " in absent slices"),
    )  # fmt: skip
    left = join((join([count(found, key), words]) for key, found, words in states if found), "; ")
    what = "numbers" if summary.scores is None else "scores"
    return [
        tag("p", "Only ", count(tiles.done, "tiles.done"), " of ", count(tiles.total, "tiles.total"),
            " tiles are done (", left, f"): all {what} on this page are of these. See ",
            tag("a", _STATE_TITLE, href="#state"), ".", class_="lead warning", id="unfinished")
    ]  # fmt: skip


def _headline(summary: Summary) -> Markup:
    if summary.scores is None or summary.counts is None:
        said = (
            "This run was compared with no truth, so there are no scores: nothing here says how good the mask is. "
            "The page shows what there is."
        )
        return tag("p", said, class_="lead warning", id="no-truth")
    undefined = undefined_scores(summary.counts)
    kind = "lead warning" if "mcc" in undefined else "lead"
    said = tag("p", verdict(summary.counts), class_=kind, id="verdict")
    values = asdict(summary.scores)
    cards = [
        tag("div", tag("dt", SCORE_NAMES[name]), *_card_value(values[name], name, name in undefined),
            tag("dd", MEANINGS[name]))
        for name in _HEADLINE
    ]  # fmt: skip
    return join([said, tag("dl", *cards, class_="cards")])


def _card_value(value: float | None, name: str, undefined: bool) -> list[Markup]:
    """A score in large; of one that is 0 / 0 the number, which is by a rule and no finding, is small."""
    shown = score(value, f"scores.{name}")
    if not undefined:
        return [tag("dd", shown, class_="value")]
    by_rule = "0 / 0: it has no value." if value is None else join(["0 / 0: counts as ", shown, "."])
    return [tag("dd", "undefined", class_="value word"), tag("dd", by_rule)]


def _what(page: Page) -> Markup:
    volume, summary = page.volume, page.summary
    z, y, x = volume["shape"]
    size = volume["voxel_size_um"]
    slices = volume["slices"]
    pairs: list[tuple[object, object]] = [
        ("Volume", tag("code", volume["path"])),
        ("Size", f"{z:,} × {y:,} × {x:,} voxels (z, y, x), {volume['dtype']}"),
        ("Voxel", "not known" if size is None else f"{' × '.join(f'{side:g}' for side in size)} µm (z, y, x)"),
    ]
    if size is not None:
        lengths = (f"{side * length / 1000:.3g}" for side, length in zip(size, volume["shape"], strict=True))
        pairs.append(("Extent", f"{' × '.join(lengths)} mm"))
    absent = f", {slices['absent']:,} absent" if slices["absent"] else ""
    pairs += [
        ("Slices", f"{slices['present']:,} present{absent}"),
        ("Region of the last run", _region(page)),
        ("Segmented", join([count(summary.voxels, "voxels"), " voxels"])),
        ("Truth", "none" if summary.truth is None else join([
            f"{summary.truth}: ", count(summary.annotated, "annotated"), " annotated voxels"])),
    ]  # fmt: skip
    steps = tag("ol", *(tag("li", sentence) for sentence in recipe_sentences(page.recipe)))
    return join([steps, facts(pairs)])


def _region(page: Page) -> str:
    if page.attempts and "problem" in page.attempts[-1]:
        return "cannot be read"
    region = page.attempts[-1].get("region") if page.attempts else None
    whole = str(Box.whole(tuple(page.volume["shape"])))
    return "the whole volume" if region in (None, whole) else str(region)


def _scores(page: Page) -> Markup | None:
    document = page.summary.document()
    counts, scores, macro = document["counts"], document["scores"], document["macro"]
    if scores is None:
        return None
    undefined = undefined_scores(page.summary.counts)
    head = ["Score", "All voxels", "Mean of tiles", "What it means"]
    body = [
        [SCORE_NAMES[name], score(scores[name], f"scores.{name}", name in undefined),
         _mean(macro, name), MEANINGS[name]]
        for name in sorted(SCORES, key=list(SCORE_NAMES).index)
    ]  # fmt: skip
    tiles = macro and tag("p", "Mean of tiles: over the ", count(macro["tiles"], "macro.tiles"),
                          " tiles with annotated voxels, each of which counts the same.")  # fmt: skip
    rule = tag("p", RULES[page.summary.undefined]) if macro and any(macro["undefined"].values()) else None
    matrix = table(
        "Annotated voxels by truth and mask",
        ["", "vessel in the truth", "background in the truth"],
        [["vessel in the mask", *(count(counts[kind], f"counts.{kind}") for kind in ("tp", "fp"))],
         ["background in the mask", *(count(counts[kind], f"counts.{kind}") for kind in ("fn", "tn"))]],
        class_="numbers",
    )  # fmt: skip
    return join(filter(None, [matrix, table("All scores", head, body, class_="meanings"), tiles, rule]))


def _mean(macro: Mapping[str, Any] | None, name: str) -> Markup:
    """Mean of a score over the tiles, and in how many of these it is 0 / 0."""
    if macro is None:
        return score(None, f"macro.{name}")
    mean, undefined = score(macro[name], f"macro.{name}"), macro["undefined"][name]
    return join([mean, " (", count(undefined, f"macro.undefined.{name}"), " undefined)"]) if undefined else mean


def _slices(page: Page) -> Markup:
    profile, depth = page.profile, page.volume["shape"][0]
    note = tag("p", "A click on a chart chooses the slice of the map below.", class_="soft screen", id="chart-note")
    undefined = set(page.without_mcc.tolist())
    mark = tag("span", "(undefined)", class_="mark")
    body = [
        [z, join([_plain(profile.score("mcc")[z], ".4f"), *([" ", mark] if z in undefined else [])]),
         _plain(profile.score("f1")[z], ".4f"),
         *(_plain(values[z], ".4g") for values in (profile.low, profile.middle, profile.high)),
         _plain(100 * profile.vessel[z], ".3f")]
        for z in range(min(depth, SHOWN_SLICES))
    ]  # fmt: skip
    head = ["Slice", "MCC", "F1", "Lowest level", "Median level", "Highest level", "% vessel"]
    numbers = tag("details", tag("summary", "The numbers"), tag("div", table("Numbers of each slice", head, body,
                  class_="numbers"), class_="tallest"), *left_out(depth, SHOWN_SLICES, "slices"),
                  class_="screen")  # fmt: skip
    said = f"Annotated slices whose MCC is undefined, 0 / 0, as truth or mask is all of one kind: {len(undefined):,}."
    lack = [tag("p", said, id="without-mcc")] if undefined else []
    return join([profile_charts(page), *lack, note, numbers])


def _plain(value: float, form: str) -> str:
    return f"{value:{form}}".replace("-", "−") if math.isfinite(value) else "none"


def _levels(page: Page) -> Markup:
    found = page.summary.document()["levels"]
    parts: list[object] = []
    if found:
        parts.append(tag("p", "Levels of the tiles, on the filtered scale: lowest ", _level(found, "min"), ", median ",
                         _level(found, "median"), ", highest ", _level(found, "max"), "."))  # fmt: skip
    parts.append(histogram_chart(page))
    curves = curve_charts(page)
    if curves is not None:
        parts += [tag("h3", "If one level were used for the whole volume"), curves]
    return join(parts)


def _level(found: Mapping[str, float], which: str) -> Markup:
    return number(found[which], level_words(found[which]), f"levels.{which}")


def _methods(page: Page) -> Markup | None:
    ranking, own = page.evidence.ranking, page.evidence.own
    if ranking is None:
        return None
    vessel, total = ranking.places[0].counts.tp + ranking.places[0].counts.fn, ranking.places[0].counts.total
    if vessel in (0, total):  # an MCC would be by a rule, and a best method by chance
        which = "background" if vessel else "vessel"
        return tag(
            "p", f"The truth has no {which}, so no method can be said to be better than another.", id="no-ranking"
        )
    said = [
        describe(ranking, place) for place in ranking.places if place is ranking.places[0] or place.candidate == own
    ]
    intro = (
        "Every threshold method, judged on the same annotated tiles by the histograms that this run has stored: after "
        "its filter, without later stages."
    )
    sure = ranking.slices >= LEAST_SLICES
    body = [
        [_method(place, place.candidate == own), _scope(page, place), *_place(place, sure)] for place in ranking.places
    ]
    head = ["Method", "Level for each", "MCC", "Behind the best", *(["95 % interval", "Told apart"] if sure else [])]
    return join([tag("p", intro), *_bins(page), *(tag("p", f"{sentence}.") for sentence in said),
                 table("Methods by MCC, best first", head, body, class_="numbers", id="method-table")])  # fmt: skip


def _method(place: Place, own: bool) -> Markup:
    return tag("strong", f"{place.candidate.method} (this run)") if own else escape(place.candidate.method)


def _bins(page: Page) -> list[Markup]:
    """Say of more than 8 bits why the row of a run's own method is not quite the run."""
    if page.volume["dtype"] == "uint8":
        return []
    said = (
        f"Stored histograms of {page.volume['dtype']} have {WINDOWED_LEVELS} bins, each of which may hold several grey "
        "levels. The row of this run has its exact levels, the others have levels between bins: so the row of its own "
        "method may score a little differently."
    )
    return [tag("p", said, id="bins")]


def _scope(page: Page, place: Place) -> str:
    """What shares a level: the ranking calls a run that is none of its methods a recipe, but a recipe has that, too."""
    if place.candidate.scope == "recipe" and "segmenter" not in page.recipe:
        return str(page.recipe["threshold"]["scope"])
    return place.candidate.scope


def _place(place: Place, sure: bool) -> list[object]:
    cells: list[object] = [
        join([score(place.scores.mcc), bar(place.scores.mcc)]), f"{place.behind:.4f}"
    ]  # fmt: skip
    if sure and place.interval is not None:
        told = "yes" if place.told_apart else "no"
        cells += [f"{place.interval.low:.4f} to {place.interval.high:.4f}", told]
    return cells
