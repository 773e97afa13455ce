"""Times of interactions, against Python's own."""

from datetime import UTC, datetime

import polars as pl
import pytest

from ptmrec_dist.data.tables.times import Times

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
    "14/07/2017": datetime(2017, 7, 14),
    "07/14/2017": datetime(2017, 7, 14),
    "7/7/2017": datetime(2017, 7, 7),
    "31/12/2017 23:30 -02:00": datetime(2018, 1, 1, 1, 30),
    "14.07.2017 23:59": datetime(2017, 7, 14, 23, 59),
    "14-07-2017": datetime(2017, 7, 14),
    "2017.07.04": datetime(2017, 7, 4),
    "14. Juli 2017": datetime(2017, 7, 14),
    "14/07/2017, 03:59:07": datetime(2017, 7, 14, 3, 59, 7),
    "7/14/2017, 3:59:07\u202fPM": datetime(2017, 7, 14, 15, 59, 7),
    "7/14/2017 12:05 AM": datetime(2017, 7, 14, 0, 5),
    "2017-07-14 12:05pm": datetime(2017, 7, 14, 12, 5),
    "14-Jul-2017 3:59:07.5 p.m. +02:00": datetime(2017, 7, 14, 13, 59, 7, 500_000),
    "July 14, 2017, 3:59 a.m. UTC": datetime(2017, 7, 14, 3, 59),
    "20170714T035907Z": datetime(2017, 7, 14, 3, 59, 7),
    "2017-07-14 03:59:07,250": datetime(2017, 7, 14, 3, 59, 7, 250_000),
    "Fri Jul 14 2017 03:59:07 GMT+0200 (Central European Summer Time)": datetime(2017, 7, 14, 1, 59, 7),
    "Tue Jul  4 03:59:07 2017": datetime(2017, 7, 4, 3, 59, 7),
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
    [
        "30/02/2014",
        "13/13/2014",
        "13.13.2014",
        "14.07.17",
        "14-JUL-17",
        "2017-07-14 13:59 PM",
        "2017-07-14 03:59 EST",
        "07/08/14",
        "2017/13/01",
        "2017-02-30",
        "Jul 14",
        "14 Foo 2017",
        "yesterday",
        "",
        "nan",
        "inf",
    ],
)
def test_dates_that_are_incomplete_or_none_are_not_guessed(text: str) -> None:
    assert seconds_of(pl.Series([text, "5"])).to_list() == [None, 5.0]


@pytest.mark.parametrize(
    ("telling", "form"), [("13/07/2017", "%d/%m/%Y"), ("07/13/2017 00:00", "%m/%d/%Y"), ("1/31/2017", "%m/%d/%Y")]
)
@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_day_above_12_tells_the_order_of_all_dates_of_the_column(telling: str, form: str, place: int) -> None:
    texts = ["01/02/2017", "12/1/2016", "5/5/2017"]
    expected = [datetime.strptime(text, form).replace(tzinfo=UTC).timestamp() for text in texts]
    found = seconds_of(pl.Series([*texts[:place], telling, *texts[place:]])).to_list()
    assert found[:place] + found[place + 1 :] == expected


def test_the_zone_shifts_a_date_after_its_day_and_month_were_told_apart() -> None:
    texts = ["01/02/2017 23:30 -02:00", "2017/01/02 23:30-02:00", "1500000000000", "", "01/13/2017"]
    first, second, *others = seconds_of(pl.Series(texts)).to_list()
    assert first == second == datetime(2017, 1, 3, 1, 30, tzinfo=UTC).timestamp()
    assert others == [1.5e9, None, datetime(2017, 1, 13, tzinfo=UTC).timestamp()]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["5/5/2017", "01/02/2017", "03/04/2017"], r"cannot be told apart \(01/02/2017 in row 2\): no day is above 12"),
        (
            ["05.05.2017", "01.02.2017 3:59 PM"],
            r"cannot be told apart \(01.02.2017 3:59 PM in row 2\): no day is above 12",
        ),
        (
            ["01/02/2017", "13/02/2017", "01/31/2017"],
            r"day first \(13/02/2017 in row 2\) and with the month first \(01/31/2017 in row 3\)",
        ),
    ],
)
def test_dates_whose_order_the_column_does_not_tell_are_refused(texts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        seconds_of(pl.Series(texts))


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
