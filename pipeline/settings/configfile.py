"""Configuration files: YAML in, a model or all its errors out at once, each with its line."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.errors import ConfigError, MissingInputError
from pipeline.settings.config import Cluster, ImageFolder, Region, RunConfig, SyncOptions, TruthFolder
from pipeline.settings.model import TAGS, show
from pipeline.settings.recipe import Clean, Correct, Denoise, Segmenter, Threshold, Valid

DEPTH = 3  # of the keys: sync.images.folder
_PATHS = (("volume",), ("segmenter", "model"), ("sync", "images", "folder"), ("sync", "truth", "folder"))


def load_config(source: Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Read a YAML configuration, or take the default recipe for a volume's folder.

    Parameters
    ----------
    source : Path
        A ``.yaml`` file, or the folder of a volume.
    overrides : mapping, optional
        Dotted keys and their values, applied over the file. To set a section's ``method`` or ``engine`` drops what the
        file says of another one.

    Raises
    ------
    MissingInputError
        If the file is not there.
    ConfigError
        With every error of the file, each with its line and dotted path.
    """
    values: dict[str, Any] = {"volume": str(source)}
    places = _Places("options", {}, set(overrides or {}))
    problems: list[tuple[float, str]] = []
    if source.suffix in {".yaml", ".yml"}:
        node, values = _read_yaml(source)
        problems = [(line, f"{source}:{line}: {text}") for line, text in _duplicates(node)]
        places = _Places(str(source), dict(_lines(node)), places.options)
        for keys in _PATHS:
            try:
                values = _beside(source.parent, values, keys)
            except ConfigError as error:
                line, place = places.find(keys)
                problems.append((line, f"{place}: {'.'.join(keys)}: {error}"))
    for key, value in sorted((overrides or {}).items(), key=lambda item: not _is_tag(item[0])):
        _override(values, key, value)
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        problems += [_describe(problem, places) for problem in error.errors()]
    if problems:
        raise ConfigError("\n".join(text for _, text in sorted(problems)))
    return config


def parse_assignment(text: str) -> tuple[str, Any]:
    """``threshold.level=79`` as its dotted key and its YAML value."""
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", key.strip()):
        raise ConfigError(f"--set: got {show(text)}, write it as key=value, such as threshold.method=fixed")
    try:
        return key.strip(), yaml.safe_load(value)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"--set {key}: got {show(value)}, which is no YAML value") from error


def suggest(word: str, known: Sequence[str]) -> str:
    """Text that names the nearest of the known words, or all of them."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean `{near[0]}`?" if near else f"expected one of {', '.join(sorted(known))}"


def _is_tag(key: str) -> bool:
    section, _, last = key.partition(".")
    return section in TAGS and TAGS[section][0] == last


def _override(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inner = values.get(section)
        values[section] = dict(inner) if isinstance(inner, Mapping) else {}
        values = values[section]
    if _is_tag(key) and values.get(last, TAGS[sections[0]][1]) != value:
        values.clear()
    values[last] = value


def _beside(folder: Path, values: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Values with one path made relative to the file's folder: copied on the way, since aliases share sections."""
    key, *inner = keys
    value = values.get(key)
    if inner and isinstance(value, Mapping):
        return {**values, key: _beside(folder, dict(value), inner)}
    if inner or not isinstance(value, str) or not value:
        return values
    try:
        return {**values, key: str(folder / Path(value).expanduser())}
    except RuntimeError as error:  # of pathlib, where `~name` is nobody
        raise ConfigError(f"got {show(value)}, whose home folder is not known; write the path in full") from error


def _read_yaml(path: Path) -> tuple[yaml.MappingNode, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise MissingInputError(f"{path}: no such configuration file") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is no text in UTF-8 ({error.reason} at byte {error.start})") from error
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ConfigError(f"{path}:{mark.line + 1 if mark else 1}: is not YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError) as error:  # dates such as 2024-13-45 are ValueErrors
        raise ConfigError(f"{path}: is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(node, yaml.MappingNode):
        got = "is empty" if node is None else f"got {show(values)}"
        raise ConfigError(f"{path}: {got}, expected keys and values such as `volume: brain.zarr`")
    return node, values


def _lines(node: yaml.MappingNode, section: str = "", depth: int = DEPTH) -> Iterator[tuple[str, int]]:
    """Dotted keys and their lines, no deeper than sections go: aliases could make that endless."""
    for key, value in node.value:
        yield f"{section}{key.value}", key.start_mark.line + 1
        if isinstance(value, yaml.MappingNode) and depth > 1:
            yield from _lines(value, f"{section}{key.value}.", depth - 1)


def _duplicates(node: yaml.MappingNode) -> Iterator[tuple[int, str]]:
    first: dict[str, int] = {}
    for dotted, line in _lines(node):
        if first.setdefault(dotted, line) != line:
            yield line, f"{dotted}: stands twice, first in line {first[dotted]}; keep one"


@dataclass(frozen=True, slots=True)
class _Places:
    """Where the values of a configuration come from."""

    origin: str
    lines: dict[str, int]
    options: set[str]

    def find(self, keys: Sequence[str]) -> tuple[float, str]:
        """Line, or infinity, and text of the place of a key, or of the nearest section around it."""
        for length in range(len(keys), 0, -1):
            dotted = ".".join(keys[:length])
            if dotted in self.options:
                return math.inf, "options"
            if dotted in self.lines:
                return self.lines[dotted], f"{self.origin}:{self.lines[dotted]}"
        return math.inf, self.origin


def _describe(problem: Any, places: _Places) -> tuple[float, str]:
    """Line and text for one error of pydantic: where, what was got, what is wanted."""
    keys = [str(part) for part in problem["loc"]]
    tag = TAGS[keys[0]][0] if keys[0] in TAGS else ""
    kind = keys.pop(1) if tag and len(keys) > 1 else ""  # pydantic puts the kind of a section after its name
    where = keys
    match problem["type"]:
        case "extra_forbidden":
            text = _unknown(keys, kind)
        case "missing":
            text = f"is required by `{tag}: {kind}`" if kind else "is required"
            where = [keys[0], tag] if kind else keys
        case "union_tag_invalid":
            got = problem["input"][tag]
            keys.append(tag)
            text = f"got {show(got)}, {suggest(str(got), list(_KINDS[keys[0]]))}"
        case _:
            text = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
            text = text if text.startswith("got ") else f"got {show(problem['input'])}, {text}"
    line, place = places.find(where)
    return line, f"{place}: {'.'.join(keys)}: {text}"


def _unknown(keys: Sequence[str], kind: str) -> str:
    """Text about a key that its section does not have."""
    section, key = keys[0], keys[-1]
    others = [other for other, known in _KINDS.get(section, {}).items() if key in known]
    if kind and others:
        return f"is a key of `{TAGS[section][0]}: {' or '.join(others)}`, not of `{kind}`"
    if kind:
        return f"unknown key; {suggest(key, _KINDS[section][kind])}"
    return f"unknown key; {suggest(key, _keys(_SECTIONS[tuple(keys[:-1])]))}"


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


_SECTIONS: dict[tuple[str, ...], type[BaseModel]] = {
    (): RunConfig,
    ("region",): Region,
    ("valid",): Valid,
    ("correct",): Correct,
    ("clean",): Clean,
    ("sync",): SyncOptions,
    ("sync", "images"): ImageFolder,
    ("sync", "truth"): TruthFolder,
}
_KINDS = {
    section: {
        tag: _keys(kind)
        for kind in get_args(get_args(union)[0])
        for tag in get_args(kind.model_fields[TAGS[section][0]].annotation)
    }
    for section, union in (
        ("denoise", Denoise),
        ("threshold", Threshold),
        ("segmenter", Segmenter),
        ("cluster", Cluster),
    )
}
