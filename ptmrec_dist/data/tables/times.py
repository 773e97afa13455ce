"""Times of interactions: numbers or dates as text, in seconds since 1970."""

from typing import NamedTuple

import polars as pl

_UNITS = {"seconds": (1e8, 1.0), "milliseconds": (1e11, 1e3), "microseconds": (1e14, 1e6), "nanoseconds": (1e17, 1e9)}
"""Unit to the smallest number that is read as a time in it (March 1973), and the number of units per second. The range of a
unit ends at a hundred times that; numbers outside all ranges (positions, years, days) are kept unchanged."""
_BAND = 1e2
_CANONICAL = (
    (r"^(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun),? ", ""),  # "Fri, 14 Jul 2017 03:59:07 GMT", as in mails and HTTP
    (r"^([A-Za-z]{3}) +(\d{1,2}) ([\d:]{8})( [+-]\d{4})? (\d{4})$", "$5-$1-$2 $3$4"),  # "Jul 14 03:59:07 2017", as in C
    (r"^(\d{4})[/.](\d{1,2})[/.](\d{1,2})", "$1-$2-$3"),
    (r"^(\d{4})(\d{2})(\d{2})T(\d{2})(\d{2})(\d{2})", "$1-$2-$3 $4:$5:$6"),  # basic format of ISO 8601
    (r"^(\d{1,2}) (\d{1,2}), (\d{4})", "$3-$1-$2"),  # "07 14, 2014", as in Amazon's reviews of 2014
    (r"^(\d{1,2})\.?[ -]([A-Za-z]{3})[a-z]{0,6}\.?[ -](\d{4})", "$3-$2-$1"),
    (r"^([A-Za-z]{3})[a-z]{0,6}\.? (\d{1,2}),? (\d{4})", "$3-$1-$2"),
    (r"^(\d{4}-\w+-\d{1,2})(?:[Tt]|,?\s+)", "$1 "),
    (r"^(\d{4}-\w+-\d{1,2})$", "$1 00:00"),
    (r"^(\S+ \d{1,2}:\d{2})([^:\d].*)?$", "$1:00$2"),
    (r"(:\d{2}),(\d+)", "$1.$2"),
    (r"\s*([AaPp])\.?[Mm]\b\.?", " ${1}M"),
    (r" \([A-Z][A-Za-z ]+\)$", ""),  # "GMT+0200 (Central European Summer Time)", as in JavaScript
    (r" ?(?:[Zz]|UTC|GMT)$", "+0000"),
    (r" ?(?:UTC|GMT)?([+-]\d{2}):?(\d{2})?$", "$1$2"),
    (r"(:\d{2}(?:\.\d+)?(?: [AaPp]M)?[+-]\d{2})$", "${1}00"),
    (r"(:\d{2}(?:\.\d+)?(?: [AaPp]M)?)$", "$1+0000"),
)
"""Substitutions, applied in order, that bring a date to one of `_FORMATS`; without a zone it is UTC."""
_FORMATS = tuple(
    f"%Y-{month}-%d {time}%z"
    for month in ("%m", "%b")  # "Jul" or "July"
    for time in ("%H:%M:%S%.f", "%I:%M:%S%.f %p")
)
_YEAR_LAST = r"^(\d{1,2})[/.-](\d{1,2})[/.-](\d{4})"
"""Day and month in either order, and the year: the column decides the order."""
_DAY = 86400


class _Example(NamedTuple):
    text: str
    row: int


class Times:
    """A column of times that is read in batches: what its numbers mean depends on all of them.

    Numbers are taken as seconds, milliseconds, microseconds or nanoseconds by their size. Dates are written year first
    (`2017-07-14`, `2017/07/14`) or with the name of the month (`14 Jul 2017`, `July 14, 2017`), alone or with a time of day
    (`03:59`, `T03:59:00.5`, `3:59 AM`) and a zone (`Z`, `+02:00`). Dates that end with the year (`14/07/2017`, `14.07.2017`,
    `07-14-2017`) have the day and the month in the order that those of the column tell which have a day above 12.
    """

    def __init__(self) -> None:
        self._found: dict[str, _Example] = {}
        self._rows = 0

    def read(self, texts: pl.Series) -> pl.DataFrame:
        """Read the next batch.

        Args:
            texts: One time per row.

        Returns:
            `time`, float64, null where a text is neither number nor date; `dated`, whether it is a date; and `swap`, int16, the
            days by which it is another date with day and month swapped, 0 where this gives none.
        """
        numbers = texts.cast(pl.Float64, strict=False)
        numbers = pl.select(pl.when(numbers.is_finite()).then(numbers)).to_series()
        dates, swap = self._read_dates(texts, pl.select(pl.when(numbers.is_null()).then(texts)).to_series())
        low, _ = _UNITS["seconds"]
        self._note("dates", texts, dates.is_not_null())
        self._note("others", texts, numbers.abs() < low)
        for unit, (low, _) in _UNITS.items():
            self._note(unit, texts, numbers.abs().is_between(low, low * _BAND))
        self._rows += len(texts)
        return pl.select(time=pl.coalesce(numbers, dates), dated=dates.is_not_null(), swap=swap)

    def seconds(self, times: pl.DataFrame) -> pl.Series:
        """Convert what was read, when all batches have been.

        Args:
            times: Rows that `read` returned, of any batches.

        Returns:
            Seconds since 1970, float64.

        Raises:
            ValueError: Numbers of two units in one column, dates and numbers of none, or dates of two orders or of none that
                the column tells.
        """
        self._refuse_other_numbers()
        if self._months_come_first():
            times = times.with_columns(pl.col("time") + _DAY * pl.col("swap"))
        units = [unit for unit in _UNITS if unit in self._found]
        if len(units) > 1:
            values = " and ".join(f"{unit} ({self._shown(unit)})" for unit in units)
            raise ValueError(f"holds {values}; expected one unit: convert the others")
        a_second = _UNITS[units[0]][1] if units else 1.0
        if a_second == 1:
            return times["time"]
        return times.select(pl.when("dated").then("time").otherwise(pl.col("time") / a_second)).to_series()

    def _read_dates(self, texts: pl.Series, undecided: pl.Series) -> tuple[pl.Series, pl.Series]:
        """Dates, the day before the month where both orders give one, and the days by which the other order differs."""
        dates, year_last = _dates(undecided), undecided.str.contains(_YEAR_LAST).fill_null(False)
        if not year_last.any():
            return dates, pl.zeros(len(texts), pl.Int16, eager=True)
        orders = [_dates(undecided.str.replace(_YEAR_LAST, order)) for order in ("$3-$2-$1", "$3-$1-$2")]
        days, months = (pl.select(pl.when(year_last).then(read)).to_series() for read in orders)
        swap = ((months - days) / _DAY).fill_null(0).cast(pl.Int16)
        self._note("days first", texts, days.is_not_null() & months.is_null())
        self._note("months first", texts, months.is_not_null() & days.is_null())
        self._note("either first", texts, swap != 0)
        return pl.select(pl.coalesce(dates, days, months)).to_series(), swap

    def _months_come_first(self) -> bool:
        """Whether the dates that end with the year have the month before the day, as those with a day above 12 tell."""
        if {"days first", "months first"} <= self._found.keys():
            raise ValueError(
                f"holds dates with the day first ({self._shown('days first')}) and with the month first "
                f"({self._shown('months first')}); expected one order: write them as 2017-07-14"
            )
        if "either first" in self._found and not {"days first", "months first"} & self._found.keys():
            raise ValueError(
                f"holds dates in which day and month cannot be told apart ({self._shown('either first')}): no day is above "
                "12; expected the year first: write them as 2017-07-14"
            )
        return "months first" in self._found

    def _note(self, kind: str, texts: pl.Series, found: pl.Series) -> None:
        """Remember the first text of a kind."""
        if kind not in self._found and found.any():
            row = int(found.arg_true()[0])
            self._found[kind] = _Example(texts[row], self._rows + row + 1)

    def _refuse_other_numbers(self) -> None:
        """Refuse positions and years among dates: read as seconds, these would all lie in 1970."""
        if {"dates", "others"} <= self._found.keys():
            raise ValueError(
                f"holds dates ({self._shown('dates')}) and numbers that are no times ({self._shown('others')}); "
                "expected one kind: convert the others, or leave them empty"
            )

    def _shown(self, kind: str) -> str:
        return "{0.text} in row {0.row}".format(self._found[kind])


def _dates(texts: pl.Series) -> pl.Series:
    """Seconds since 1970, float64; null where a text is no date."""
    dates = texts
    for pattern, replacement in _CANONICAL:
        dates = dates.str.replace(pattern, replacement)
    parsed = (dates.str.to_datetime(form, time_unit="us", strict=False) for form in _FORMATS)
    return pl.select(pl.coalesce(*parsed).dt.epoch("us") / 1e6).to_series()
