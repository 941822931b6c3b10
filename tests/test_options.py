"""Options in general: what a bad value is told as, in which order, and what a changed set of options keeps."""

import copy
import pickle
from typing import Annotated, Literal

import pytest
from pydantic import Field

from ballast.data.columns import CONVERSIONS
from ballast.errors import BallastError
from ballast.options import COLUMN_STYLES, Columns, Options, OptionsError, Sources, Text


class Small(Options):
    """A small set."""

    kind: Literal["small"] = "small"
    count: int = Field(1, ge=1)
    """How many."""


class Large(Options):
    """A large set."""

    kind: Literal["large"]


class Example(Options):
    """One option of every kind."""

    owner = "example."

    needed: int
    share: float = Field(0.5, gt=0, le=1)
    text: Text | None = None
    flag: bool = False
    style: Literal["plain", "fancy"] = "plain"
    sources: Sources = ()
    columns: Columns = None
    values: dict[str, int] = Field(default_factory=dict)
    inner: Small | None = None
    several: tuple[Annotated[Small | Large, Field(discriminator="kind")], ...] = Field((), strict=False)


def refused(**values):
    with pytest.raises(OptionsError) as caught:
        Example(**values)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "needed: is required and missing"),
        ({"needed": 1, "txet": "a"}, "txet: unknown key; did you mean 'text'?"),
        ({"needed": True}, "needed: should be a valid integer; got True"),
        ({"needed": 1.0}, "needed: should be a valid integer; got 1.0"),
        ({"needed": "1"}, "needed: should be a valid integer; got '1'"),
        ({"needed": 1, "share": 0}, "share: should be greater than 0; got 0"),
        ({"needed": 1, "share": 1.5}, "share: should be less than or equal to 1; got 1.5"),
        ({"needed": 1, "share": float("nan")}, "share: should be a finite number; got nan"),
        ({"needed": 1, "text": ""}, "text: is empty; give a value or leave the key out"),
        ({"needed": 1, "flag": 1}, "flag: should be a valid boolean; got 1"),
        ({"needed": 1, "style": "plian"}, "style: 'plian' is not allowed; did you mean 'plain'?"),
        ({"needed": 1, "sources": {"a": 1}}, "sources: must be text or a list of them; got {'a': 1}"),
        ({"needed": 1, "sources": ["a", ""]}, "sources.1: is empty; give a value or leave the key out"),
        (
            {"needed": 1, "columns": "alpac"},
            "columns: must be alpaca or sharegpt, or map our column names to yours; got 'alpac'",
        ),
        (
            {"needed": 1, "columns": {"prompt": 2}},
            "columns: must be alpaca or sharegpt, or map our column names to yours; got {'prompt': 2}",
        ),
        ({"needed": 1, "values": [1]}, "values: must be a mapping of keys; got [1]"),
        ({"needed": 1, "inner": 3}, "inner: must be a mapping of keys; got 3"),
        ({"needed": 1, "inner": {"count": 0}}, "inner.count: should be greater than or equal to 1; got 0"),
        ({"needed": 1, "inner": {"cuont": 2}}, "inner.cuont: unknown key; did you mean 'count'?"),
        ({"needed": 1, "several": "small"}, "several: should be a list; got 'small'"),
        ({"needed": 1, "several": [{"count": 1}]}, "several.0.kind: is required and missing"),
        ({"needed": 1, "several": [{"kind": "smal"}]}, "several.0.kind: 'smal' is not allowed; did you mean 'small'?"),
        (
            {"needed": 1, "several": [{"kind": "large"}, {"kind": "small", "count": 0}]},
            "several.1.count: should be greater than or equal to 1; got 0",
        ),
    ],
)
def test_a_bad_value_is_one_line_with_its_place(values, said):
    error = refused(**values)
    assert isinstance(error, BallastError)
    assert str(error) == f"example.{said}"
    assert len(error.problems) == 1


def test_all_problems_are_kept_in_the_order_that_the_options_were_given_in():
    error = refused(several=[{"kind": "small", "cuont": 2, "count": 0}], txet="a", share=0)
    assert [where for where, _ in error.problems] == [
        ("several", 0, "cuont"),
        ("several", 0, "count"),
        ("txet",),
        ("share",),
        ("needed",),
    ]


def test_an_error_is_cut_where_a_value_is_long_and_survives_being_sent():
    error = refused(needed="9" * 1000)
    assert len(str(error)) < 300
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.problems) == (str(error), error.problems)


def test_names_that_are_no_text_are_unknown_options():
    with pytest.raises(OptionsError, match=r"^example\.1: unknown key"):
        Example.from_dict({"needed": 1, 1: 2})


def test_options_cannot_be_set():
    with pytest.raises(ValueError, match="frozen"):
        Example(needed=1).needed = 2


def test_changes_are_laid_over_what_was_given():
    options = Example(needed=1, share=0.25)
    changed = options.changed({"needed": 2, "flag": True})
    assert changed == Example(needed=2, share=0.25, flag=True)
    assert changed.model_fields_set == {"needed", "share", "flag"}
    assert options.needed == 1
    with pytest.raises(OptionsError, match="unknown key"):
        options.changed({"flga": True})


def test_options_survive_being_written_down_copied_and_sent():
    options = Example(needed=1, several=[{"kind": "large"}, Small(count=3)], sources="a")
    assert options.to_dict()["several"] == [{"kind": "large"}, {"kind": "small", "count": 3}]
    assert Example.from_dict(options.to_dict()) == options
    assert copy.deepcopy(options) == pickle.loads(pickle.dumps(options)) == options


def test_what_stands_beneath_an_option_documents_it():
    assert Small.model_fields["count"].description == "How many."


def test_the_styles_of_columns_are_those_that_rows_are_read_by():
    assert set(COLUMN_STYLES) == set(CONVERSIONS)
