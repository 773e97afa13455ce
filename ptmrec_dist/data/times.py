"""Times of interactions: numbers or dates as text, in seconds since 1970."""

import polars as pl

_UNITS = {"seconds": (1e8, 1.0), "milliseconds": (1e11, 1e3), "microseconds": (1e14, 1e6), "nanoseconds": (1e17, 1e9)}
"""Unit to the smallest number that is read as a time in it (March 1973), and the number of units per second. The range of a
unit ends at a hundred times that; numbers outside all ranges (positions, years, days) are kept unchanged."""
_BAND = 1e2
_CANONICAL = (
    (r"^(\d{4})/(\d{1,2})/(\d{1,2})", "$1-$2-$3"),
    (r"^(\d{1,2}) (\d{1,2}), (\d{4})$", "$3-$1-$2"),  # "07 14, 2014", as in Amazon's reviews of 2014
    (r"^(\d{4}-\d{1,2}-\d{1,2})[Tt ]+", "$1 "),
    (r"^(\d{4}-\d{1,2}-\d{1,2})$", "$1 00:00"),
    (r"^(\S+ \d{1,2}:\d{2})([^:\d].*)?$", "$1:00$2"),
    (r" ?(?:[Zz]|UTC|GMT)$", "+0000"),
    (r" ?([+-]\d{2}):?(\d{2})?$", "$1$2"),
    (r"(:\d{2}(?:\.\d+)?[+-]\d{2})$", "${1}00"),
    (r"(:\d{2}(?:\.\d+)?)$", "$1+0000"),
)
"""Substitutions, applied in order, that bring a date to `_FORMAT`; without a zone it is UTC."""
_FORMAT = "%Y-%m-%d %H:%M:%S%.f%z"
_CTIME = "%a %b %d %H:%M:%S %z %Y"  # "Wed Mar 22 11:37:04 -0700 2017", as in Goodreads and Twitter


def seconds_of(texts: pl.Series) -> pl.Series:
    """Read times.

    Numbers are taken as seconds, milliseconds, microseconds or nanoseconds by their size. Dates are written year first
    (`2017-07-14`, `2017/07/14`), alone or with a time of day (`03:59`, `T03:59:00.5`) and a zone (`Z`, `+02:00`).

    Args:
        texts: One time per row.

    Returns:
        Seconds since 1970, float64; null where a text is neither number nor date.

    Raises:
        ValueError: Numbers of two units in one column, or dates and numbers of none.
    """
    numbers = texts.cast(pl.Float64, strict=False)
    numbers = pl.select(pl.when(numbers.is_finite()).then(numbers)).to_series()
    dates = texts
    for pattern, replacement in _CANONICAL:
        dates = dates.str.replace(pattern, replacement)
    parsed = [dates.str.to_datetime(_FORMAT, time_unit="us", strict=False)]
    parsed.append(texts.str.to_datetime(_CTIME, time_unit="us", strict=False))
    from_dates = pl.select(pl.coalesce(*parsed).dt.epoch("us") / 1e6).to_series()
    _refuse_other_numbers(texts, numbers, from_dates)
    return pl.select(pl.coalesce(numbers / _units_a_second(texts, numbers), from_dates)).to_series().rename(texts.name)


def _refuse_other_numbers(texts: pl.Series, numbers: pl.Series, from_dates: pl.Series) -> None:
    """Refuse positions and years among dates: beside those they would all lie in 1970."""
    low, _ = _UNITS["seconds"]
    dates, others = from_dates.is_not_null().arg_true(), (numbers.abs() < low).arg_true()
    if len(dates) and len(others):
        raise ValueError(
            f"holds dates ({texts[dates[0]]} in row {dates[0] + 1}) and numbers that are no times ({texts[others[0]]} in row "
            f"{others[0] + 1}); expected one kind: convert the others, or leave them empty"
        )


def _units_a_second(texts: pl.Series, numbers: pl.Series) -> float:
    size, found = numbers.abs(), {}
    for unit, (low, _) in _UNITS.items():
        rows = size.is_between(low, low * _BAND).arg_true()
        if len(rows):
            found[unit] = rows[0]
    if len(found) > 1:
        values = " and ".join(f"{unit} ({texts[row]} in row {row + 1})" for unit, row in found.items())
        raise ValueError(f"holds {values}; expected one unit: convert the others")
    return next((_UNITS[unit][1] for unit in found), 1.0)
