"""The validation report: how many rows were read and dropped, for which reasons, with examples."""

from dataclasses import dataclass
from typing import Any

import polars as pl
from rich.console import Console
from rich.table import Table

from ptmrec_dist.errors import UserError

_MOST_EXAMPLES = 5
_EXAMPLES_IN_MESSAGE = 2
_LONGEST_EXAMPLE = 200


@dataclass
class Dropped:
    """Rows that were dropped for one reason."""

    reason: str
    count: int
    fault: bool
    examples: list[str]
    hint: str

    def __str__(self) -> str:
        shown = "; ".join([*self.examples[:_EXAMPLES_IN_MESSAGE], *([self.hint] if self.hint else [])])
        return f"{self.reason} ({shown})"


class Tally:
    """Row counts of one table. Rows are removed through `drop` alone, so that the counts add up.

    Args:
        name: What the rows are.
        rows: Number of rows read.
    """

    def __init__(self, name: str, rows: int) -> None:
        self.name = name
        self.read = rows
        self.ids: tuple[int, int] | None = None
        """Least and greatest id of the rows read, where ids are row numbers."""
        self._dropped: dict[str, Dropped] = {}
        self._incomplete: dict[str, dict[str, Any]] = {}

    @property
    def dropped(self) -> list[Dropped]:
        """Dropped rows by reason."""
        return list(self._dropped.values())

    @property
    def kept(self) -> int:
        """Rows that are left."""
        return self.read - sum(dropped.count for dropped in self.dropped)

    def drop(
        self,
        table: pl.DataFrame,
        bad: pl.Expr | pl.Series,
        reason: str,
        *,
        show: str,
        fault: bool = True,
        hint: str = "",
    ) -> pl.DataFrame:
        """Drop rows and record their number, the reason and examples.

        Args:
            table: The rows that are left so far, or a block of them.
            bad: True for each row to leave out; no nulls.
            reason: Why, a few words.
            show: Format string of an example, with the table's columns as fields.
            fault: Whether such rows are mistakes in the input, rather than rows that the settings exclude.
            hint: What helps to find the cause, for messages; it may name paths, and is not kept in the manifest.

        Returns:
            The other rows.
        """
        mask = table.select(bad=bad).to_series()
        count = int(mask.sum())
        if count == 0:
            return table
        rows = table.filter(mask).head(_MOST_EXAMPLES).to_dicts()
        examples = [show.format(**row)[:_LONGEST_EXAMPLE] for row in rows]
        dropped = self._dropped.setdefault(reason, Dropped(reason, 0, fault, [], hint))
        dropped.count += count
        dropped.examples += examples[: _MOST_EXAMPLES - len(dropped.examples)]
        return table.filter(~mask)

    def has_dropped(self, *reasons: str) -> bool:
        """Return whether rows were dropped for certain reasons.

        Args:
            *reasons: Reasons as `drop` took them.

        Returns:
            Whether there are such rows.
        """
        return any(reason in self._dropped for reason in reasons)

    def note_incomplete(self, table: pl.DataFrame, reason: str, *, show: str) -> None:
        """Record rows that are kept although something is missing.

        Args:
            table: The rows, or those of a block.
            reason: What is missing, a few words.
            show: Format string of an example, with the table's columns as fields.
        """
        if table.height:
            examples = [show.format(**row)[:_LONGEST_EXAMPLE] for row in table.head(_MOST_EXAMPLES).to_dicts()]
            noted = self._incomplete.setdefault(reason, {"count": 0, "examples": []})
            noted["count"] += table.height
            noted["examples"] += examples[: _MOST_EXAMPLES - len(noted["examples"])]

    def faults(self) -> list[str]:
        """List the mistakes in the input.

        Returns:
            For each kind: count, reason and examples.
        """
        return [f"{self.name}: {dropped.count} {dropped}" for dropped in self.dropped if dropped.fault]

    def summary(self) -> str:
        """Format the counts as one line.

        Returns:
            Rows read, left out for each reason, with examples, and kept, and how many of these lack something.
        """
        dropped = [f"{dropped.count:,} left out: {dropped}" for dropped in self.dropped]
        lacking = [f"{noted['count']:,} of them with: {reason}" for reason, noted in self._incomplete.items()]
        return ", ".join([f"{self.read:,} {self.name} read", *dropped, f"{self.kept:,} kept", *lacking])

    def counts(self) -> str:
        """Format the counts as one line without examples.

        Returns:
            Rows read, left out for each reason, and kept.
        """
        dropped = [f"{dropped.count:,} left out: {dropped.reason}" for dropped in self.dropped]
        return ", ".join([f"{self.read:,} read", *dropped, f"{self.kept:,} kept"])

    def to_dict(self) -> dict[str, Any]:
        """Return the counts for the manifest.

        Returns:
            `read`, `kept`, `dropped`: reason to `count` and `examples`; in the same way `incomplete`, of rows that are
            kept, where there are any; and `ids`, the least and the greatest of the rows read, where they are row numbers.
        """
        dropped = {drop.reason: {"count": drop.count, "examples": drop.examples} for drop in self.dropped}
        incomplete = {"incomplete": self._incomplete} if self._incomplete else {}
        ids = {"ids": list(self.ids)} if self.ids else {}
        return {"read": self.read, "kept": self.kept, "dropped": dropped} | incomplete | ids


@dataclass(frozen=True)
class Report:
    """Row counts of a catalogue and of its interactions."""

    items: Tally
    """Counts of the catalogue's rows."""
    interactions: Tally
    """Counts of the interactions."""

    def stop_on_faults(self) -> None:
        """Refuse input that has mistakes in it.

        Raises:
            UserError: Rows were left out for a mistake in the input.
        """
        faults = [*self.items.faults(), *self.interactions.faults()]
        if faults:
            raise UserError(f"bad input: {'; '.join(faults)}; fix it, or leave such rows out with --on_error skip")

    def stop_if_nothing_left(self) -> None:
        """Refuse input of which nothing can be packed.

        Raises:
            UserError: All items or all interactions were left out.
        """
        if self.items.kept and self.interactions.kept:
            return
        raise UserError(
            f"nothing is left to pack: {self.items.summary()}; {self.interactions.summary()}; expected at least "
            "one item with an interaction to train on; fix the input, or lower --core or --min_rating"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all counts for the manifest.

        Returns:
            `items` and `interactions`, each as `Tally.to_dict` gives it.
        """
        return {tally.name: tally.to_dict() for tally in (self.items, self.interactions)}

    def print(self) -> None:
        """Print the counts as a table."""
        table = Table("", "rows", "examples")
        table.columns[1].justify = "right"
        for tally in (self.items, self.interactions):
            table.add_row(f"{tally.name} read", f"{tally.read:,}", "")
            for dropped in tally.dropped:
                examples = [*dropped.examples, *([dropped.hint] if dropped.hint else [])]
                table.add_row(f"  {dropped.reason}", f"-{dropped.count:,}", "\n".join(examples))
            table.add_row(f"{tally.name} kept", f"{tally.kept:,}", "")
            for reason, kept in tally.to_dict().get("incomplete", {}).items():
                table.add_row(f"  of them {reason}", f"{kept['count']:,}", "\n".join(kept["examples"]))
            table.add_section()
        # Ids come from the data: print them literally, never as markup.
        Console(markup=False, highlight=False, emoji=False).print(table)
