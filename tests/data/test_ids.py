"""Ids: their order, and finding them in a table that spells them otherwise."""

import polars as pl
import pytest

from ptmrec_dist.data.ids import (
    as_enum,
    known_to,
    numbers_of,
    respelled,
    sort_ids,
    spelled_as,
    without_fraction,
)


def test_ids_are_ordered_by_number_only_if_all_are_numbers() -> None:
    assert sort_ids(pl.Series(["10", "9", "10", "-1"], dtype=pl.Categorical)).to_list() == ["-1", "9", "10"]
    assert sort_ids(pl.Series(["10", "9", "b"], dtype=pl.Categorical)).to_list() == ["10", "9", "b"]


def test_numbers_are_positions_in_the_list() -> None:
    ids = as_enum(pl.Series("id", ["x", "c", "a", "c"], dtype=pl.Categorical)[1:], pl.Series(["a", "b", "c"]))
    assert numbers_of(ids).tolist() == [2, 0, 2]
    left = as_enum(ids, pl.Series(["c", "a"]))
    assert numbers_of(left).tolist() == [0, 1, 0]
    assert (left.name, left.to_list(), known_to(left).to_list()) == ("id", ["c", "a", "c"], ["c", "a"])


def test_categories_are_written_as_the_distinct_ids_would_be() -> None:
    ids = pl.Series(["1.0", "", "2.0", "1.0"], dtype=pl.Categorical)
    assert respelled(ids, without_fraction).to_list() == ["1", "", "2", "1"]
    assert respelled(ids.head(1), lambda texts: texts).to_list() == ["1.0"]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["1001.0", "", "7.00"], ["1001", "", "7"]),
        (["1001.0", "1001"], ["1001.0", "1001"]),
        (["1.0", "1.5"], ["1.0", "1.5"]),
        (["", ""], ["", ""]),
    ],
)
def test_a_fraction_of_zero_goes_only_where_all_ids_have_one(ids: list[str], expected: list[str]) -> None:
    assert without_fraction(pl.Series(ids)).to_list() == expected


@pytest.mark.parametrize(
    ("ids", "known", "expected"),
    [
        (["7", "8", "7"], ["007", "08"], ["007", "08", "007"]),
        (["007", "008.0"], ["7", "8"], ["7", "8"]),
        (["7"], ["007", "07"], ["7"]),  # which of the two?
        (["7", "07"], ["007"], ["7", "07"]),  # are they one?
        (["7", "007"], ["007"], ["7", "007"]),
        (["7", "7.0"], ["7"], ["7", "7.0"]),
        (["7", "x"], ["7", "07", "X"], ["7", "x"]),
        (["0", "00"], ["000"], ["0", "00"]),
        ([""], ["0"], [""]),
    ],
)
def test_leading_zeros_are_ignored_only_where_no_two_ids_can_become_one(
    ids: list[str], known: list[str], expected: list[str]
) -> None:
    assert spelled_as(pl.Series(ids), pl.Series(known)).to_list() == expected
