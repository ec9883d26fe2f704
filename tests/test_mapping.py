"""What the values of a label mean, by small tables."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import LabelValueError
from pipeline.intake.mapping import LabelOptions, Mapping, decide_mapping


@pytest.mark.parametrize(
    ("values", "options", "stored", "mapping"),
    [
        pytest.param([0, 1, 255], {"unlabelled": 1}, [0, 127, 255], Mapping(255, None, 1), id="unlabelled"),
        pytest.param([0, 255], {}, [0, 255], Mapping(255), id="0 and 255"),
        pytest.param([0, 1], {}, [0, 255], Mapping(1), id="0 and 1"),
        pytest.param([0, 40000], {}, [0, 255], Mapping(40000), id="16 bit"),
        pytest.param([7], {}, [255], Mapping(7), id="vessel only"),
        pytest.param([0], {}, [0], Mapping(None), id="background only"),
        pytest.param([9], {"unlabelled": 9}, [127], Mapping(None, None, 9), id="not annotated only"),
        pytest.param([0, 1, 2, 3], {"vessel_above": 1}, [0, 0, 255, 255], Mapping(None, 1), id="instances"),
        pytest.param([0, 3, 99, 100, 250], {"vessel_above": 99.5, "unlabelled": 3}, [0, 127, 0, 255, 255],
                     Mapping(None, 99.5, 3), id="grey rims"),
        pytest.param([0, 200, 255], {"vessel_above": 100, "unlabelled": 255}, [0, 255, 127], Mapping(None, 100, 255),
                     id="unlabelled above the level"),
    ],
)  # fmt: skip
def test_values_become_background_vessel_and_not_annotated(values, options, stored, mapping):
    decided = decide_mapping(values, LabelOptions("x", **options), None)
    assert decided == mapping
    assert Mapping(**decided.document()) == decided
    for dtype in (np.uint8, np.uint16) if max(values) < 256 else (np.uint16,):
        applied = decided.apply(np.array([values], dtype))
        assert applied.dtype == np.uint8
        assert applied.tolist() == [stored]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param([0, 1, 2], r"^--label x: its files hold 3 values \(0, 1, 2\), expected 0 and one other; say which "
                     r"are vessel with --vessel-above LEVEL, and what nobody annotated with --unlabelled VALUE$",
                     id="instances"),
        pytest.param([1, 2], r"hold 2 values \(1, 2\)", id="no background"),
        pytest.param([*range(12)], r"hold 12 values \(0, 1, .* 10, 11\)", id="all listed"),
        pytest.param([*range(40)], r"hold 40 values \(0, 1, .* 10, 11, \.\.\.\)", id="many"),
    ],
)  # fmt: skip
def test_values_without_a_meaning_are_refused_and_listed(values, message):
    with pytest.raises(LabelValueError, match=message):
        decide_mapping(values, LabelOptions("x"), None)


@pytest.mark.parametrize(
    ("first", "values", "options", "message"),
    [
        pytest.param(Mapping(255), [0, 1], {}, r"these files hold 2 values \(0, 1\), its first files were read as "
                     r"0 background, 255 vessel; convert these, or ingest under another name", id="another vessel"),
        pytest.param(Mapping(255), [0, 255], {"vessel_above": 9}, r"read as 0 background, 255 vessel, got "
                     r"vessel above 9; leave the options out", id="level given late"),
        pytest.param(Mapping(None, 3), [0, 5], {"vessel_above": 4}, r"read as vessel above 3, got vessel above 4",
                     id="another level"),
        pytest.param(Mapping(255), [0, 9, 255], {"unlabelled": 9}, r"leave the options out", id="unlabelled late"),
        pytest.param(Mapping(None), [0, 1, 2], {}, r"hold 3 values \(0, 1, 2\), its first files were read as 0 "
                     r"background, any one value vessel", id="several after zeros only"),
    ],
)  # fmt: skip
def test_meaning_of_the_first_files_binds_later_ones(first, values, options, message):
    with pytest.raises(LabelValueError, match=message):
        decide_mapping(values, LabelOptions("x", **options), first)


@pytest.mark.parametrize(
    ("first", "values", "options", "mapping"),
    [
        pytest.param(Mapping(7), [0, 7], {}, Mapping(7), id="same values"),
        pytest.param(Mapping(7), [0], {}, Mapping(7), id="zeros after"),
        pytest.param(Mapping(None), [0, 9], {}, Mapping(9), id="zeros first"),
        pytest.param(Mapping(None, 3), [1, 2, 6], {}, Mapping(None, 3), id="level is kept"),
        pytest.param(Mapping(None, 3), [1, 6], {"vessel_above": 3}, Mapping(None, 3), id="level again"),
        pytest.param(Mapping(None, None, 4), [0, 4, 5], {}, Mapping(5, None, 4), id="unlabelled is kept"),
    ],
)
def test_later_files_are_read_like_the_first(first, values, options, mapping):
    assert decide_mapping(values, LabelOptions("x", **options), first) == mapping


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        (Mapping(None), "0 background, any one value vessel"),
        (Mapping(255, None, 127), "0 background, 255 vessel, 127 not annotated"),
        (Mapping(None, 12.5), "vessel above 12.5"),
    ],
)
def test_mapping_in_words(mapping, words):
    assert str(mapping) == words
