"""Findings: what was found where, how bad it is, and what to do about it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import polars as pl

from ptmrec_dist.doctor.kinds import KINDS, Severity

MOST_EXAMPLES = 3
"""Rows that a finding shows of a log, at most."""
RARE = 0.05
"""Up to this fraction of the rows, what is merely untidy is a note."""


class ExitCode(IntEnum):
    """Exit code of `ptmrec doctor`."""

    GOOD = 0
    WARNINGS = 1
    ERRORS = 2


@dataclass(frozen=True)
class Finding:
    """One finding."""

    kind: str
    """A key of `KINDS`, which is also its anchor in docs/troubleshooting.md."""
    where: str
    """Path, or what else was examined."""
    found: str
    """What was found, with counts, on one line."""
    examples: tuple[str, ...] = ()
    """Some of the rows or files."""
    severity: Severity | None = None
    """By default that of its kind."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "severity", self.severity or KINDS[self.kind].severity)
        object.__setattr__(self, "found", " ".join(self.found.split()))  # it quotes files that are not trusted

    @property
    def remedy(self) -> str:
        """What to do."""
        return KINDS[self.kind].remedy

    @property
    def link(self) -> str:
        """Where it is explained."""
        return f"docs/troubleshooting.md#{self.kind}"

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values.

        Returns:
            For JSON.
        """
        return {
            "severity": str(self.severity),
            "kind": self.kind,
            "where": self.where,
            "found": self.found,
            "examples": list(self.examples),
            "remedy": self.remedy,
            "link": self.link,
        }


@dataclass
class Report:
    """Everything that one command found."""

    findings: list[Finding] = field(default_factory=list)
    """Findings, in the order of the checks."""
    facts: list[tuple[str, str, str]] = field(default_factory=list)
    """What was examined, a name and a value: sizes, estimates, versions."""

    def add(self, findings: Iterable[Finding]) -> None:
        """Add findings.

        Args:
            findings: What a check found.
        """
        self.findings.extend(findings)

    @property
    def exit_code(self) -> ExitCode:
        """Worst severity as an exit code."""
        severities = {finding.severity for finding in self.findings}
        if Severity.ERROR in severities:
            return ExitCode.ERRORS
        return ExitCode.WARNINGS if Severity.WARNING in severities else ExitCode.GOOD


def example_pairs(rows: pl.DataFrame) -> tuple[str, ...]:
    """Describe the first rows of a log.

    Args:
        rows: Interactions, with `user` and `item`.

    Returns:
        A text for each of a few rows.
    """
    return tuple(f"user {row['user']!r}, item {row['item']!r}" for row in rows.head(MOST_EXAMPLES).to_dicts())


def note_if_rare(count: int, total: int) -> Severity:
    """Judge rows that are untidy rather than wrong.

    Args:
        count: Such rows.
        total: All rows.

    Returns:
        A note for few rows, a warning for many.
    """
    return Severity.NOTE if count <= RARE * total else Severity.WARNING
