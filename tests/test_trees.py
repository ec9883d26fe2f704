"""Trees against scikit-learn's own answers; damaged ones are refused before any node is followed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from threadpoolctl import threadpool_limits

from pipeline.errors import ShapeMismatchError
from pipeline.kernels.trees import Trees, _flatten, _Nodes

MODELS = {
    "forest": lambda: RandomForestClassifier(12, max_depth=7, random_state=0),
    "deep": lambda: RandomForestClassifier(3, random_state=1),
    "stumps": lambda: RandomForestClassifier(4, max_depth=1, random_state=0),
    "boosting": lambda: HistGradientBoostingClassifier(max_iter=15, random_state=0),
}


def samples(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (count, 6)).astype(np.float32)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Boosting waits, busily, for every CPU of the machine."""
    with threadpool_limits(1):
        yield


@cache
def fitted(name: str) -> Any:
    seen = samples(1500, 0)
    return MODELS[name]().fit(seen, seen[:, 0] + seen[:, 1] * seen[:, 2] > 0.5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("count", [0, 1, 3, 4, 1025, 2051])
def test_trees_answer_as_scikit_learn_does(name: str, count: int) -> None:
    model, asked = fitted(name), samples(count, 1)
    trees = Trees.of(model, 6)
    found, mask = trees.scores(asked), trees.mask(asked)
    if not count:
        assert found.shape == mask.shape == (0,)
    elif name == "boosting":
        np.testing.assert_array_equal(found, model.decision_function(asked))
        np.testing.assert_array_equal(mask == 255, model.predict(asked))
    else:
        np.testing.assert_array_equal(found / len(model.estimators_), model.predict_proba(asked)[:, 1])
        sure = found != len(model.estimators_) / 2
        np.testing.assert_array_equal((mask == 255)[sure], model.predict(asked)[sure])
        assert not mask[~sure].any()


def tree(**changes: Any) -> _Nodes:
    """A tree of two levels: feature 1 above 0.1, then feature 0 above 2."""
    nodes: dict[str, Any] = {
        "left": [1, -1, 3, -1, -1],
        "right": [2, -1, 4, -1, -1],
        "leaf": [False, True, False, True, True],
        "feature": [1, -2, 0, -2, -2],
        "threshold": [0.1, -2.0, 2.0, -2.0, -2.0],
        "value": [0.5, 10.0, 0.5, 20.0, 30.0],
    }
    return _Nodes(**{key: np.array(value) for key, value in (nodes | changes).items()})


def answer(nodes: _Nodes, *values: float) -> float:
    flat, depth = _flatten(nodes, 2)
    trees = Trees(
        flat.feature.astype(np.uint32), flat.threshold, flat.left.astype(np.uint32), flat.value,
        np.zeros(1, np.uint32), depth, 2, 1.0, 0.0,
    )  # fmt: skip
    return float(trees.scores(np.array([values], np.float32))[0])


def test_threshold_is_compared_in_64_bits() -> None:
    near = np.float32(0.1)  # which is a little more than 0.1
    assert answer(tree(), 0, np.nextafter(near, np.float32(0))) == 11
    assert answer(tree(), 0, near) == 21
    assert answer(tree(), 2, near) == 21
    assert answer(tree(), 2.5, near) == 31
    assert answer(tree(threshold=[1e300, 0, 0, 0, 0]), 0, np.finfo(np.float32).max) == 11


@pytest.mark.parametrize(
    "changes",
    [
        {"left": [0, -1, 3, -1, -1]},
        {"left": [1, -1, 0, -1, -1]},
        {"right": [5, -1, 4, -1, -1]},
        {"right": [-3, -1, 4, -1, -1]},
        {"left": [2**31, -1, 3, -1, -1]},
        {"feature": [2, -2, 0, -2, -2]},
        {"feature": [-2, -2, 0, -2, -2]},
        {"value": [0.5, np.nan, 0.5, 20.0, 30.0]},
        {"leaf": [False, False, False, True, True]},
    ],
    ids=str,
)
def test_what_is_no_tree_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="it has a tree"):
        _flatten(tree(**changes), 2)


@pytest.mark.parametrize("asked", [np.zeros((3, 5), np.float32), np.zeros((3, 6)), np.zeros(6, np.float32)], ids=str)
def test_samples_must_have_the_features(asked: np.ndarray) -> None:
    with pytest.raises(ShapeMismatchError, match=r"the trees need float32 \(n, 6\)"):
        Trees.of(fitted("stumps"), 6).scores(asked)


def test_trees_must_ask_for_features_that_there_are() -> None:
    with pytest.raises(ValueError, match="features which there are not"):
        Trees.of(fitted("forest"), 2)
