"""Configuration files: every error at once, each with its line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from pipeline.errors import ConfigError, MissingInputError
from pipeline.settings.config import (
    AddressCluster,
    ImageFolder,
    LocalCluster,
    Region,
    RunConfig,
    SyncOptions,
    ThreadsCluster,
    TruthFolder,
)
from pipeline.settings.configfile import load_config, parse_assignment
from pipeline.settings.recipe import FixedThreshold, HistogramThreshold, MedianDenoise, NoDenoise, Recipe

CONFIGS_FOLDER = Path(__file__).parents[1] / "configs"

EVERYTHING = """\
volume: brain.zarr
name: mine
truth: groundtruth
foreground: bright
tile: 256
denoise: {method: median, size: [3, 5, 5]}
threshold: {method: fixed, level: 40.5}
region: z=0:10,x=5:9
memory: 4GB
sync:
  images: {folder: slices, number: '_([0-9]+)', first: 1, channel: red}
  truth: {folder: /traced, number: null, channel: 2, vessel_above: 99.5, unlabelled: 3}
  settle: 1.5m
  voxel_size_um: [1, 0.7, 0.6]
cluster: {engine: address, address: "tcp://host:8786"}
"""

FILE = "volume: a\nthreshold:\n  method: fixed\n  level: 40\ncluster:\n  engine: address\n  address: tcp://a:1\n"


def load(folder, text, overrides=None):
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, overrides)


def refusal(folder, text, overrides=None):
    """Lines of the error, without the folder."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text, overrides)
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def test_defaults(tmp_path):
    config = load(tmp_path, "volume: brain.zarr\n")
    assert config == RunConfig(volume=tmp_path / "brain.zarr")
    assert config.recipe == Recipe()
    assert config.recipe.document() == {
        "foreground": "dark",
        "tile": 512,
        "denoise": {"method": "median", "size": 3},
        "threshold": {"method": "otsu", "scope": "tile"},
    }
    assert (config.name, config.truth, config.region, config.memory) == (None, None, None, None)
    assert config.cluster == ThreadsCluster()
    assert config.run_name == "otsu"


def test_a_bare_volume_is_the_default_recipe():
    assert load_config(Path("brain.zarr")) == RunConfig(volume=Path("brain.zarr"))


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("brain.zarr", "{folder}/brain.zarr"),
        ("../a/brain.zarr", "{folder}/../a/brain.zarr"),
        ("/a/b.zarr", "/a/b.zarr"),
    ],
    ids=["beside", "above", "absolute"],
)
def test_the_volume_is_relative_to_the_file(tmp_path, written, expected):
    assert load(tmp_path, f"volume: {written}\n").volume == Path(expected.format(folder=tmp_path))


def test_the_volume_may_be_in_a_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/anna")
    assert load(tmp_path, "volume: ~/brain.zarr\n").volume == Path("/home/anna/brain.zarr")


def test_the_home_folder_of_nobody_is_one_of_the_errors(tmp_path):
    assert refusal(tmp_path, "tile: 3\nvolume: ~no-such-user/brain.zarr\n") == [
        "run.yaml:1: tile: got 3, must be greater than or equal to 16",
        "run.yaml:2: volume: got '~no-such-user/brain.zarr', whose home folder is not known; write the path in full",
    ]


def test_the_volume_of_an_option_is_relative_to_where_one_is(tmp_path):
    assert load(tmp_path, "volume: a.zarr\n", {"volume": "b.zarr"}).volume == Path("b.zarr")


def test_every_key(tmp_path):
    config = load(tmp_path, EVERYTHING)
    assert (config.name, config.run_name, config.truth) == ("mine", "mine", "groundtruth")
    assert (config.foreground, config.tile, config.memory) == ("bright", 256, 4 * 10**9)
    assert config.denoise == MedianDenoise(size=(3, 5, 5))
    assert config.threshold == FixedThreshold(level=40.5)
    assert config.region == Region(z=(0, 10), x=(5, 9))
    assert config.cluster == AddressCluster(address="tcp://host:8786")
    assert config.sync == SyncOptions(
        images=ImageFolder(folder=tmp_path / "slices", number="_([0-9]+)", first=1, channel="red"),
        truth=TruthFolder(folder="/traced", channel=2, vessel_above=99.5, unlabelled=3),
        settle="90s",
        voxel_size_um=(1.0, 0.7, 0.6),
    )


def test_sections_that_share_their_keys_are_read_alike(tmp_path):
    text = "volume: a\ntruth: t\nsync:\n  images: &both {folder: ../s}\n  truth: *both\n"
    sync = load(tmp_path, text).sync
    assert sync.images.folder == sync.truth.folder == tmp_path / ".." / "s"
    assert sync.settle == 10


@pytest.mark.parametrize(
    "text",
    [
        "volume: brain.zarr\n",
        EVERYTHING,
        "volume: brain.zarr\ndenoise: {method: none}\ncluster: {engine: local, workers: 3}\nregion: {y: [1, 2]}\n",
    ],
    ids=["defaults", "everything", "other-kinds"],
)
def test_a_configuration_written_as_yaml_reads_back(tmp_path, text):
    config = load(tmp_path, text)
    written = yaml.safe_dump(config.model_dump(mode="json", by_alias=True))
    assert load(tmp_path, written) == config
    assert Recipe.model_validate(config.recipe.document()) == config.recipe


@pytest.mark.parametrize("section", ["correct: {}", "clean: {}", "clean: {opening: null}", "correct:\nclean:\nvalid:"])
def test_a_stage_that_does_nothing_is_none(tmp_path, section):
    assert load(tmp_path, f"volume: a\n{section}\n").recipe == Recipe()


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("denoise: {size: 5}", MedianDenoise(size=5)),
        ("threshold: {scope: tile}", HistogramThreshold()),
        ("cluster: {threads: 3}", ThreadsCluster(threads=3)),
    ],
    ids=["denoise", "threshold", "cluster"],
)
def test_a_section_without_its_kind_is_of_the_default_one(tmp_path, section, expected):
    config = load(tmp_path, f"volume: a\n{section}\n")
    assert getattr(config, section.partition(":")[0]) == expected


def test_every_error_of_a_file_is_reported_in_its_order(tmp_path):
    text = """\
foregroud: dark
tile: 5
denoise:
  method: median
  size: 4
threshold:
  method: otsuu
memory: lots
region: z=1
name: a/b
tile: 512
cluster:
  engine: threads
  threds: 4
"""
    assert refusal(tmp_path, text) == [
        "run.yaml:1: foregroud: unknown key; did you mean `foreground`?",
        "run.yaml:5: denoise.size: got 4, a median needs an odd size; use 5",
        "run.yaml:7: threshold.method: got 'otsuu', did you mean `otsu`?",
        "run.yaml:8: memory: got 'lots', which is no amount of memory; write it as 4GB or 500MB",
        "run.yaml:9: region: got 'z=1', which is no region; write it as z=0:10,y=0:4096,x=0:4096",
        "run.yaml:10: name: got 'a/b', a name starts with a letter or digit, and goes on with at most 99 letters, "
        "digits, '.', '_' and '-'",
        "run.yaml:11: tile: stands twice, first in line 2; keep one",
        "run.yaml:14: cluster.threds: unknown key; did you mean `threads`?",
        "run.yaml: volume: is required",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tile: 15", "2: tile: got 15, must be greater than or equal to 16"),
        ("tile: [512, 512]", "2: tile: got [512, 512], must be a valid integer"),
        ("foreground: drak", "2: foreground: got 'drak', must be 'dark' or 'bright'"),
        ("5: 3", "2: 5: got 5, Keys should be strings"),
        ("recipe: 3", "2: recipe: unknown key; expected one of clean, cluster, confusion, correct, denoise, "
             "exclude_flagged, foreground, memory, name, refit, region, segmenter, sync, threshold, tile, truth, "
             "undefined, valid, volume"),
        ("treshold: {method: otsu}", "2: treshold: unknown key; did you mean `threshold`?"),
        ("threshold:\n  methd: otsu", "3: threshold.methd: unknown key; did you mean `method`?"),
        ("threshold:\n  method: fixed", "3: threshold.level: is required by `method: fixed`"),
        ("threshold:\n  method: fixed\n  level: -1", "4: threshold.level: got -1, must be greater than or equal to 0"),
        ("threshold:\n  method: fixed\n  level: .nan",
         "4: threshold.level: got nan, must be less than or equal to 65535"),
        ("threshold:\n  level: 3", "3: threshold.level: is a key of `method: fixed`, not of `otsu`"),
        ("threshold:\n  method:", "3: threshold.method: got nothing, expected one of fixed, isodata, li, "
         "local_gaussian, local_mean, local_median, mean, minimum, niblack, otsu, sauvola, triangle, yen"),
        ("threshold:\n  scope: slices", "3: threshold.scope: got 'slices', must be 'tile', 'slice', 'volume' or "
         "'smooth'"),
        (
            "threshold:\n  method: fixed\n  level: 3\n  scope: slice",
            "5: threshold.scope: got 'slice', must be 'tile'",
        ),
        ("threshold: otsu", "2: threshold: got 'otsu', expected keys below it, such as `method: otsu`"),
        ("denoise:", "2: denoise: got nothing, expected keys below it, such as `method: median`"),
        ("denoise:\n  method: none\n  size: 3", "4: denoise.size: is a key of `method: median`, not of `none`"),
        ("denoise:\n  size: [3, 3]", "3: denoise.size: got [3, 3], expected one odd number, or three as [z, y, x]"),
        ("denoise:\n  size: [3, 6, 3]", "3: denoise.size: got 6, a median needs an odd size; use 7"),
        ("denoise:\n  size: true", "3: denoise.size: got True, expected one odd number, or three as [z, y, x]"),
        ("denoise:\n  size: 0", "3: denoise.size: got 0, a median window has 1 to 99 voxels"),
        ("denoise:\n  size: 100", "3: denoise.size: got 100, a median window has 1 to 99 voxels"),
        ("cluster:\n  engine: slurm", "3: cluster.engine: got 'slurm', expected one of address, local, threads"),
        ("cluster:\n  engine: address", "3: cluster.address: is required by `engine: address`"),
        ("cluster:\n  engine: address\n  address: host:8786",
         "4: cluster.address: got 'host:8786', expected a tcp:// address such as tcp://host:8786"),
        ("cluster:\n  engine: address\n  address: tls://host:8786",
         "4: cluster.address: got 'tls://host:8786', expected a tcp:// address such as tcp://host:8786"),
        ("cluster:\n  engine: local\n  threads: 0", "4: cluster.threads: got 0, must be greater than or equal to 1"),
        ("name: 5", "2: name: got 5, a name is text; put it in quotes"),
        ("truth: zarr.json", "2: truth: got 'zarr.json', a name starts with a letter or digit, and goes on with at "
         "most 99 letters, digits, '.', '_' and '-'"),
        ("region:\n  z: 5", "3: region.z: got 5, expected [start, stop] in voxels"),
        ("region:\n  w: [0, 5]", "3: region.w: unknown key; expected one of x, y, z"),
        ("region: [0, 5]", "2: region: got [0, 5], which is no region; write it as z=0:10,y=0:4096,x=0:4096"),
        ("sync: 5", "2: sync: got 5, expected keys below it, such as `images: {folder: slices}`"),
        ("sync:\n  settle: 9s", "2: sync.images: is required"),
        ("sync:\n  images:", "3: sync.images: got nothing, expected keys below it, such as `folder: slices`"),
        ("sync:\n  images: {folder: }", "3: sync.images.folder: got nothing, expected a folder of image files, such as "
         "slices"),
        ("sync:\n  images: {folder: a}\n  imagse: {}", "4: sync.imagse: unknown key; did you mean `images`?"),
        ("sync:\n  images:\n    folder: a\n    frist: 3", "5: sync.images.frist: unknown key; did you mean `first`?"),
        ("sync:\n  images:\n    folder: a\n    first: 3",
         r"5: sync.images.first: got 3, but no pattern that finds numbers; add `number: '(\d+)'`"),
        ("sync:\n  images:\n    folder: a\n    number: '(3'", "5: sync.images.number: got '(3', which is no regular "
         "expression (missing ), unterminated subpattern at position 0)"),
        ("sync:\n  images:\n    folder: a\n    number: '3'", "5: sync.images.number: got '3', which has no groups; put "
         r"one pair of parentheses around the number, such as 'slice_(\d+)', and write others as (?:...)"),
        ("sync:\n  images:\n    folder: a\n    number: '(3)(4)'", "5: sync.images.number: got '(3)(4)', which has 2 "
         r"groups; put one pair of parentheses around the number, such as 'slice_(\d+)', and write others as (?:...)"),
        ("sync:\n  images:\n    folder: a\n    number: 3", "5: sync.images.number: got 3, a pattern is text; put it in "
         "single quotes"),
        ("sync:\n  images:\n    folder: a\n    channel: pink", "5: sync.images.channel: got 'pink', expected red, "
         "green, blue, luminance or the number of a channel, from 0"),
        ("sync:\n  images:\n    folder: ~no-such-user/a", "4: sync.images.folder: got '~no-such-user/a', whose home "
         "folder is not known; write the path in full"),
        ("truth: t\nsync:\n  images: {folder: a}\n  truth:\n    folder: a\n    vessel_above: .nan",
         "7: sync.truth.vessel_above: got nan, must be a finite number"),
        ("sync:\n  images: {folder: a}\n  truth: {folder: b}", "2: sync: got `truth` files, but no name for their "
         "label; add `truth: groundtruth` outside `sync`"),
        ("sync:\n  images: {folder: a}\n  settle: 10", "4: sync.settle: got 10, which is no duration; write it as 10s, "
         "15m or 2h"),
        ("sync:\n  images: {folder: a}\n  voxel_size_um: [1, 0]", "4: sync.voxel_size_um: got [1, 0], expected [z, y, "
         "x] in micrometres, each from 0.001 to 1,000,000, such as [1, 0.7, 0.6]"),
        ("tile: true", "2: tile: got True, expected a number"),
        ("correct:\n  clahe: true", "3: correct.clahe: got True, expected a number"),
        ("correct:\n  match: false", "3: correct.match: got False, expected a number"),
        ("clean:\n  opening: yes", "3: clean.opening: got True, expected a number"),
        ("clean:\n  opening: 33", "3: clean.opening: got 33, must be less than or equal to 32"),
        ("clean: opening", "2: clean: got 'opening', expected keys below it, such as `small_objects: 30`"),
        ("valid: {}", "2: valid: got neither, expected `label` or `padding`"),
        ("valid: {label: a, padding: 0}", "2: valid: got both, expected `label` or `padding`"),
        ("threshold:\n  on_no_signal: empty", "3: threshold.on_no_signal: got empty, but nothing says what has no "
         "signal; add `min_contrast: 30`"),
        ("threshold:\n  k: 3", "3: threshold.k: is a key of `method: local_mean or local_gaussian or local_median or "
         "niblack or sauvola`, not of `otsu`"),
        ("threshold:\n  method: local_mean\n  k: 3",
         "4: threshold.k: got 3, which local_mean has no use for; leave it out"),
        ("threshold:\n  method: niblack\n  offset: 3",
         "4: threshold.offset: got 3, which niblack has no use for; leave it out"),
        ("threshold:\n  method: sauvola\n  size: 50",
         "4: threshold.size: got 50, expected an odd number of voxels from 3 to 999"),
        ("segmenter:\n  target: mylab", "3: segmenter.target: got 'mylab', expected module:function, such as "
         "mylab.vessels:segment"),
        ("segmenter:\n  kind: python\n  halo: [8, 8]\n  target: a:b",
         "4: segmenter.halo: got [8, 8], expected voxels as [z, y, x], such as [0, 8, 8], each at most 512"),
        ("segmenter: {target: 'a:b'}\nthreshold: {method: li}",
         "2: segmenter: got a segmenter and a threshold, which make the same mask; leave one out"),
        ("memory: true", "2: memory: got True, which is no amount of memory; write it as 4GB or 500MB"),
    ],
)  # fmt: skip
def test_the_text_about_one_error(tmp_path, text, expected):
    assert refusal(tmp_path, f"volume: brain.zarr\n{text}\n") == [f"run.yaml:{expected}"]


@pytest.mark.parametrize("volume", ["", " ''", " 5", " [a]"], ids=["nothing", "empty", "number", "list"])
def test_the_volume_is_a_path(tmp_path, volume):
    (line,) = refusal(tmp_path, f"volume:{volume}\n")
    assert line.startswith("run.yaml:1: volume: got ")
    assert line.endswith("expected the folder of a volume, such as brain.zarr")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "run.yaml: is empty, expected keys and values such as `volume: brain.zarr`"),
        ("# volume: a\n", "run.yaml: is empty, expected keys and values such as `volume: brain.zarr`"),
        ("- volume\n- tile\n",
         "run.yaml: got ['volume', 'tile'], expected keys and values such as `volume: brain.zarr`"),
        ("volume\n", "run.yaml: got 'volume', expected keys and values such as `volume: brain.zarr`"),
        ("volume: a\nname: [b\n", "run.yaml:3: is not YAML: expected ',' or ']', but got '<stream end>'"),
        ("volume: a\n\ttile: 512\n", r"run.yaml:2: is not YAML: found character '\t' that cannot start any token"),
        ("volume: a\n? [b]\n: 3\n", "run.yaml:2: is not YAML: found unhashable key"),
        ("volume: a\nname: 2024-13-45\n", "run.yaml: is not YAML: month must be in 1..12"),
        ("volume: a\0\n", "run.yaml: is not YAML: unacceptable character #x0000: special characters are not allowed"),
        ("volume: !!python/name:os.system a\n", "run.yaml:1: is not YAML: could not determine a constructor for the "
         "tag 'tag:yaml.org,2002:python/name:os.system'"),
    ],
    ids=["empty", "comment", "list", "word", "flow", "tab", "list-as-key", "date", "nul", "python"],
)  # fmt: skip
def test_a_file_that_is_no_configuration(tmp_path, text, expected):
    assert refusal(tmp_path, text) == [expected]


def test_keys_that_stand_twice(tmp_path):
    text = "volume: a\nthreshold:\n  method: otsu\n  method: otsu\nvolume: b\n"
    assert refusal(tmp_path, text) == [
        "run.yaml:4: threshold.method: stands twice, first in line 3; keep one",
        "run.yaml:5: volume: stands twice, first in line 1; keep one",
    ]


def test_endless_aliases_end(tmp_path):
    (line,) = refusal(tmp_path, "volume: a\ndenoise: &loop\n  size: 3\n  inner: *loop\n")
    assert line == "run.yaml:4: denoise.inner: unknown key; expected one of method, size"


def test_a_long_value_is_cut(tmp_path):
    (line,) = refusal(tmp_path, f"volume: a\nmemory: {'9' * 5000}GB\n")
    assert len(line) < 200


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(MissingInputError, match=r"missing\.yaml: no such configuration file"):
        load_config(tmp_path / "missing.yaml")
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"folder\.yaml: cannot be read \(Is a directory\)"):
        load_config(tmp_path / "folder.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"volume: \xff\xfe")
    with pytest.raises(ConfigError, match=r"binary\.yaml: is no text in UTF-8 \(invalid start byte at byte 8\)"):
        load_config(tmp_path / "binary.yaml")


@pytest.mark.parametrize(
    ("overrides", "key", "expected"),
    [
        ({"tile": 256}, "tile", 256),
        ({"threshold.level": 79}, "threshold", FixedThreshold(level=79)),
        ({"threshold.method": "fixed"}, "threshold", FixedThreshold(level=40)),
        ({"threshold.method": "otsu"}, "threshold", HistogramThreshold()),
        ({"cluster.engine": "threads", "cluster.threads": 2}, "cluster", ThreadsCluster(threads=2)),
        ({"cluster.workers": 2, "cluster.engine": "local"}, "cluster", LocalCluster(workers=2)),
        ({"denoise.size": 5}, "denoise", MedianDenoise(size=5)),
        ({"denoise.method": "none"}, "denoise", NoDenoise()),
        ({"region": "y=0:9"}, "region", Region(y=(0, 9))),
        ({"region.x": [1, 2]}, "region", Region(x=(1, 2))),
        ({"memory": "500MB"}, "memory", 500 * 10**6),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_options_override_the_file(tmp_path, overrides, key, expected):
    assert getattr(load(tmp_path, FILE, overrides), key) == expected


def test_a_kind_that_the_file_implies_keeps_its_keys(tmp_path):
    text = "volume: a\ndenoise: {size: 5}\n"
    assert load(tmp_path, text, {"denoise.method": "median"}).denoise == MedianDenoise(size=5)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"tile": 3}, "options: tile: got 3, must be greater than or equal to 16"),
        ({"tile.x": 3}, "run.yaml: tile: got {'x': 3}, must be a valid integer"),
        ({"threshold.levl": 3}, "options: threshold.levl: unknown key; did you mean `level`?"),
        ({"threshold.method": "otsu", "threshold.level": 3},
         "options: threshold.level: is a key of `method: fixed`, not of `otsu`"),
        ({"cluster.threads": 4},
         "options: cluster.threads: is a key of `engine: threads or local`, not of `address`"),
        ({"threshold": "otsu"}, "options: threshold: got 'otsu', expected keys below it, such as `method: otsu`"),
        ({"method": "otsu"}, "options: method: unknown key; expected one of clean, cluster, confusion, correct, "
             "denoise, exclude_flagged, foreground, memory, name, refit, region, segmenter, sync, threshold, tile, "
             "truth, undefined, valid, volume"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_an_error_of_an_option_does_not_blame_a_line(tmp_path, overrides, expected):
    assert refusal(tmp_path, FILE, overrides) == [expected]


def test_an_option_may_require_another():
    with pytest.raises(ConfigError, match=r"^options: threshold.level: is required by `method: fixed`$"):
        load_config(Path("brain.zarr"), {"threshold.method": "fixed"})


def test_an_option_mends_the_file(tmp_path):
    assert load(tmp_path, "volume: a\ntile: 5\n", {"tile": 512}).tile == 512


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("threshold.method=fixed", ("threshold.method", "fixed")),
        ("threshold.level=79", ("threshold.level", 79)),
        ("denoise.size=[3, 3, 3]", ("denoise.size", [3, 3, 3])),
        ("region=z=0:10", ("region", "z=0:10")),
        ("truth=", ("truth", None)),
    ],
)
def test_assignments(text, expected):
    assert parse_assignment(text) == expected


@pytest.mark.parametrize("text", ["threshold", "=3", "a b=3", "a..b=3"])
def test_no_assignments(text):
    with pytest.raises(ConfigError, match=r"--set: got '.*', write it as key=value, such as threshold.method=fixed"):
        parse_assignment(text)


@pytest.mark.parametrize("value", ["[1", "2024-13-45"], ids=["flow", "date"])
def test_an_assigned_value_is_yaml(value):
    with pytest.raises(ConfigError, match=r"--set tile: got '.*', which is no YAML value"):
        parse_assignment(f"tile={value}")


CONFIGS = [
    path for path in sorted(CONFIGS_FOLDER.glob("*.yaml")) if not path.name.startswith("kesm-sync-")
]  # Kubernetes


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_configurations_of_the_repository_are_valid(path):
    assert load_config(path).volume.name == "brain.zarr"


def test_the_configuration_of_a_sync_shows_every_key():
    text = (CONFIGS_FOLDER / "sync.yaml").read_text()
    written = set(re.findall(r"^ {2,4}(?:# )?(\w+):", text.partition("\nsync:\n")[2], re.MULTILINE))
    assert written == {*SyncOptions.model_fields, *ImageFolder.model_fields, *TruthFolder.model_fields}
