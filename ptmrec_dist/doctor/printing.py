"""Printing of findings: a table for a terminal, tab-separated lines for a pipe, or JSON."""

import itertools
import json
import sys

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from ptmrec_dist.doctor.findings import Report
from ptmrec_dist.doctor.kinds import Severity

_ORDER = (Severity.ERROR, Severity.WARNING, Severity.NOTE)


def print_report(report: Report, as_json: bool) -> None:
    """Print what was found, the worst first.

    Args:
        report: Facts and findings.
        as_json: Whether to print JSON.
    """
    findings = sorted(report.findings, key=lambda finding: _ORDER.index(finding.severity or Severity.NOTE))
    if as_json:
        described = [{"where": where, "name": name, "value": value} for where, name, value in report.facts]
        plain = [finding.to_dict() for finding in findings]
        print(json.dumps({"exit_code": int(report.exit_code), "findings": plain, "facts": described}, indent=1))
        return
    if not sys.stdout.isatty():
        for fact in report.facts:
            print(_line("fact", *fact))
        for finding in findings:
            cells = (finding.found, "; ".join(finding.examples), finding.remedy, finding.link)
            print(_line(str(finding.severity), finding.where, finding.kind, *cells))
        return
    # Names are the user's: they are printed as they are, never as markup.
    console = Console(markup=False, highlight=False, emoji=False)
    for where, facts in itertools.groupby(report.facts, key=lambda fact: fact[0]):
        console.print(where)
        for _, name, value in facts:
            console.print(Padding(f"{name}: {value}", (0, 0, 0, 2)))
    if not findings:
        console.print("nothing found")
        return
    table = Table("", "found, and what to do", show_lines=True)
    for finding in findings:
        shown = [f"{finding.where}: {finding.found}", *(f"  {example}" for example in finding.examples)]
        table.add_row(str(finding.severity), "\n".join([*shown, f"-> {finding.remedy}", f"   {finding.link}"]))
    console.print(table)


def _line(*cells: str) -> str:
    return "\t".join(" ".join(cell.split()) for cell in cells)
