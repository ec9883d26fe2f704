"""What is compared: methods, scopes and filters by name, which the tables of a filter judge, and recipes, which run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from pipeline.errors import ConfigError
from pipeline.methods.comparison import METRICS, Candidate, Metric, Scope
from pipeline.settings.config import RunConfig
from pipeline.settings.configfile import load_config, suggest
from pipeline.settings.model import check_name
from pipeline.settings.recipe import (
    Denoise,
    FixedThreshold,
    GaussianDenoise,
    HistogramThreshold,
    LocalThreshold,
    MedianDenoise,
    NoDenoise,
    PythonDenoise,
    Recipe,
)

METHODS: tuple[str, ...] = get_args(HistogramThreshold.model_fields["method"].annotation)
LOCAL_METHODS: tuple[str, ...] = get_args(LocalThreshold.model_fields["method"].annotation)
SCOPES: tuple[Scope, ...] = get_args(Scope)
SUFFIXES = ".yaml", ".yml"


@dataclass(frozen=True, slots=True)
class Words:
    """What a command line asks for; None means all methods or scopes, and no filter the configuration's."""

    methods: Sequence[str] | None = None
    scopes: Sequence[str] | None = None
    denoise: Sequence[str] = ()
    recipes: Sequence[Path] = ()
    by: str = "mcc"
    folds: int | None = None


@dataclass(frozen=True, slots=True)
class Contest:
    """What is compared, and how.

    Attributes
    ----------
    methods, scopes : tuple of str
        Judged by the tables of a filter's run.
    denoise : tuple of Denoise
        Each costs a run, unless there is one.
    recipes : mapping
        What each of the other candidates runs.
    by : str
        Score that ranks.
    folds : int or None
        Parts of the annotated slices that are held out in turn; None for five, or fewer where there are fewer slices.
    """

    methods: tuple[str, ...]
    scopes: tuple[Scope, ...]
    denoise: tuple[Denoise, ...]
    recipes: Mapping[Candidate, RunConfig]
    by: Metric
    folds: int | None


def parse_contest(config: RunConfig, words: Words) -> Contest:
    """Understand the words of a command line.

    A configuration that does more than a level for each tile is a candidate itself, and so is one whose level is fixed.

    Raises
    ------
    ConfigError, MissingInputError
        Naming the word that is not known, and what it may have meant; or the recipe that cannot take part, and why.
    """
    for option, given, known in (
        ("methods", words.methods, (*METHODS, *LOCAL_METHODS)),
        ("scopes", words.scopes, (*SCOPES, "smooth")),
        ("by", [words.by], METRICS),
    ):
        if given is not None and not given:
            raise ConfigError(f"--{option}: got nothing, {suggest('', known)}; or leave it out")
        for word in given or ():
            if word not in known:
                raise ConfigError(f"--{option}: got {word!r}, {suggest(word, known)}")
    filters = tuple(dict.fromkeys(map(parse_denoise, words.denoise))) or (config.denoise,)
    asked = METHODS if words.methods is None else tuple(dict.fromkeys(words.methods))
    scopes = SCOPES if words.scopes is None else tuple(dict.fromkeys(words.scopes))
    methods = tuple(method for method in asked if method in METHODS)
    recipes = {} if plain(config) == config and not isinstance(config.threshold, FixedThreshold) else _own(config)
    for denoise in filters:
        smooth = methods if "smooth" in scopes else ()
        local = [method for method in asked if method in LOCAL_METHODS]
        for candidate in (
            *(Candidate(method, "smooth", name_of(denoise)) for method in smooth),
            *(Candidate(method, "voxel", name_of(denoise)) for method in local),
        ):
            recipes[candidate] = configured(config, candidate, denoise)
    for candidate, recipe in _files(config, words.recipes):
        twin = next((other for other in recipes if other.scope == "recipe" and other.method == candidate.method), None)
        if twin is not None:
            what = "--name of the configuration" if recipes[twin] == config else "another --recipe"
            raise ConfigError(
                f"--recipe: {candidate.method!r} is the name of two rows, of a file and of {what}; rename the file"
            )
        recipes[candidate] = recipe
    (by,) = (metric for metric in METRICS if metric == words.by)
    return Contest(methods, tuple(scope for scope in SCOPES if scope in scopes), filters, recipes, by, words.folds)


def _own(config: RunConfig) -> dict[Candidate, RunConfig]:
    return {Candidate(config.run_name, "recipe", name_of(config.denoise)): config}


def _files(config: RunConfig, paths: Sequence[Path]) -> Iterator[tuple[Candidate, RunConfig]]:
    """Recipes of files, for the volume, the truth and on the machines of the configuration."""
    for path in paths:
        if path.suffix not in SUFFIXES:
            raise ConfigError(f"--recipe: got {path}, expected a configuration file such as smooth.yaml")
        loaded = load_config(path, {"volume": str(config.volume)})
        if loaded.valid != config.valid:
            raise ConfigError(
                f"--recipe: {path}: its valid area is not that of the configuration, and all are scored on the same "
                "voxels; give both the same `valid`"
            )
        name = check_name(path.stem, f"--recipe: {path}")
        update = {field: getattr(loaded, field) for field in Recipe.model_fields} | {"name": loaded.name or name}
        yield Candidate(name, "recipe", name_of(loaded.denoise)), config.model_copy(update=update)


def plain(config: RunConfig) -> RunConfig:
    """The configuration without what makes more of a mask than a level for each tile, under a name of its own."""
    threshold = config.threshold
    levelled = isinstance(threshold, HistogramThreshold | FixedThreshold) and threshold.scope != "smooth"
    if (config.clean, config.segmenter) == (None, None) and levelled and not threshold.judges:
        return config
    update = {"clean": None, "segmenter": None, "threshold": HistogramThreshold(), "name": f"{config.run_name}-plain"}
    return config.model_copy(update=update)


def configured(config: RunConfig, candidate: Candidate, denoise: Denoise) -> RunConfig:
    """What runs a candidate that is no recipe."""
    values = {"method": candidate.method, "scope": candidate.scope}
    local = candidate.scope == "voxel"
    threshold = LocalThreshold.model_validate(values) if local else HistogramThreshold.model_validate(values)
    name = f"{candidate.method}-{candidate.scope}-{slug(denoise)}"[:100]
    update = {"denoise": denoise, "threshold": threshold, "name": name, "refit": False, "confusion": False}
    return plain(config).model_copy(update=update)


def parse_denoise(text: str) -> Denoise:
    """``none``, ``median``, ``median:5``, ``median:3,3,3`` or ``gaussian:1.5`` as a filter."""
    method, colon, size = text.partition(":")
    try:
        if method == "none" and not colon:
            return NoDenoise()
        if method == "median":
            lengths = [int(length) for length in size.split(",")] if colon else [3]
            return MedianDenoise.model_validate({"size": lengths[0] if len(lengths) == 1 else lengths})
        if method == "gaussian":
            return GaussianDenoise.model_validate({"sigma": float(size) if colon else 1.0})
    except ValueError as error:  # pydantic's is one, too
        raise ConfigError(
            f"--denoise: got {text!r}, expected an odd size, as in median:5 or median:3,3,3, or a sigma, "
            "as in gaussian:1.5"
        ) from error
    raise ConfigError(f"--denoise: got {text!r}, expected none, median, median:5, median:3,3,3 or gaussian:1.5")


def name_of(denoise: Denoise) -> str:
    """Name of a filter, as `parse_denoise` takes it."""
    if isinstance(denoise, NoDenoise):
        return "none"
    if isinstance(denoise, GaussianDenoise):
        return f"gaussian:{str(denoise.sigma).removesuffix('.0')}"
    if isinstance(denoise, PythonDenoise):
        return f"python:{denoise.target}"
    size = denoise.size
    return f"median:{size if isinstance(size, int) else ','.join(map(str, size))}"


def slug(denoise: Denoise) -> str:
    """Name of a filter as part of the name of a run."""
    return name_of(denoise).replace(":", "").replace(",", "x")
