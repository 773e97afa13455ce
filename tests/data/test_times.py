"""Times of interactions, against Python's own."""

from datetime import UTC, datetime

import polars as pl
import pytest

from ptmrec_dist.data.times import Times

_SPELLINGS = {
    "2017-07-14": datetime(2017, 7, 14),
    "2017/07/14": datetime(2017, 7, 14),
    "07 14, 2017": datetime(2017, 7, 14),
    "07 4, 2017": datetime(2017, 7, 4),
    "2017-07-14 03:59": datetime(2017, 7, 14, 3, 59),
    "2017-07-14T03:59": datetime(2017, 7, 14, 3, 59),
    "2017/7/4 3:59:07": datetime(2017, 7, 4, 3, 59, 7),
    "2017-07-14t03:59:07.25": datetime(2017, 7, 14, 3, 59, 7, 250_000),
    "2017-07-14 03:59:07Z": datetime(2017, 7, 14, 3, 59, 7),
    "2017-07-14 03:59 UTC": datetime(2017, 7, 14, 3, 59),
    "2017-07-14T03:59+02:00": datetime(2017, 7, 14, 1, 59),
    "2017-07-14 03:59:07.5 -0330": datetime(2017, 7, 14, 7, 29, 7, 500_000),
    "2017-07-14 03:59:07+02": datetime(2017, 7, 14, 1, 59, 7),
    "Jul 14, 2017": datetime(2017, 7, 14),
    "July 4, 2017": datetime(2017, 7, 4),
    "14 Sept 2017 03:59": datetime(2017, 9, 14, 3, 59),
    "14-JUL-2017": datetime(2017, 7, 14),
    "Fri, 14 Jul 2017 03:59:07 GMT": datetime(2017, 7, 14, 3, 59, 7),
    "Fri, 14 Jul 2017 03:59:07 +0200": datetime(2017, 7, 14, 1, 59, 7),
    "Fri Jul 14 03:59:07 -0700 2017": datetime(2017, 7, 14, 10, 59, 7),
}


def seconds_of(texts: pl.Series) -> pl.Series:
    """Read a column at once, and each of its rows as a batch of its own, with the same result."""
    whole, halves = Times(), Times()
    at_once = whole.read(texts)
    one_by_one = pl.concat([halves.read(texts[row : row + 1]) for row in range(len(texts))])
    seconds = whole.seconds(at_once)
    assert halves.seconds(one_by_one).to_list() == seconds.to_list()
    return seconds


@pytest.mark.parametrize("text", _SPELLINGS)
def test_dates_are_read_to_the_second_and_are_utc_without_a_zone(text: str) -> None:
    assert seconds_of(pl.Series([text])).to_list() == [_SPELLINGS[text].replace(tzinfo=UTC).timestamp()]


@pytest.mark.parametrize(
    "text",
    ["17/07/2014", "07/17/2014", "07/08/2014", "2017-02-30", "Jul 14", "14 Foo 2017", "yesterday", "", "nan", "inf"],
)
def test_dates_that_are_ambiguous_or_none_are_not_guessed(text: str) -> None:
    assert seconds_of(pl.Series([text, "5"])).to_list() == [None, 5.0]


@pytest.mark.parametrize("text", ["1500000000", "1.5e9", "1500000000000", "1500000000000000.0", "1500000000000000000"])
def test_numbers_are_seconds_or_fractions_of_one_by_their_size(text: str) -> None:
    assert seconds_of(pl.Series([text])).to_list() == [1.5e9]


@pytest.mark.parametrize("small", ["0", "-1", "12", "20170714"])
def test_numbers_too_small_for_a_time_are_kept(small: str) -> None:
    assert seconds_of(pl.Series([small, "1500000000"])).to_list() == [float(small), 1.5e9]


def test_milliseconds_and_dates_in_one_column_agree() -> None:
    assert seconds_of(pl.Series(["1500000000000", "2017-07-14T02:40Z"])).to_list() == [1.5e9, 1.5e9]


def test_two_units_in_one_column_are_refused_with_a_value_of_each() -> None:
    with pytest.raises(
        ValueError, match=r"seconds \(1500000000 in row 2\) and microseconds \(1500000000000000 in row 3\)"
    ):
        seconds_of(pl.Series(["5", "1500000000", "1500000000000000"]))


@pytest.mark.parametrize("other", ["0", "-1", "2017", "7.5"])
def test_dates_beside_numbers_that_are_no_times_are_refused_with_both_values(other: str) -> None:
    with pytest.raises(ValueError, match=rf"dates \(2017-07-14 in row 1\) and numbers .* \({other} in row 3\)"):
        seconds_of(pl.Series("t", ["2017-07-14", "1500000000", other]))
