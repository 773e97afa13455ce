"""Ids: their order, and finding them in a table that spells them otherwise."""

import polars as pl
import pytest

from ptmrec_dist.data.ids import index_of, sort_ids, spelled_as, without_fraction


def test_ids_are_ordered_by_number_only_if_all_are_numbers() -> None:
    assert sort_ids(pl.Series(["10", "9", "10", "-1"])).to_list() == ["-1", "9", "10"]
    assert sort_ids(pl.Series(["10", "9", "b"])).to_list() == ["10", "9", "b"]


def test_index_is_the_position_in_the_list() -> None:
    assert index_of(pl.Series(["c", "a", "c"]), pl.Series(["a", "b", "c"])).to_list() == [2, 0, 2]


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
