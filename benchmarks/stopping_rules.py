"""What a growing patience costs and gains: stopping rules applied to the histories of finished runs of stage 1.

    ptmrec stage1 … --patience 100 --patience_growth 0 --out runs/long        # one or more long runs
    python benchmarks/stopping_rules.py runs/long …

A history that ends before a rule does tells nothing about what would have followed: its epochs are then those that the rule
needs if nothing better follows (marked >=).
"""

import argparse
import itertools
from pathlib import Path

from ptmrec_dist.evaluation.metrics import SELECT
from ptmrec_dist.files import read_json_lines
from ptmrec_dist.training.early_stopping import EarlyStopping

GROWTHS = (0.0, 0.25, 0.33, 0.5, 1.0)


def main() -> None:
    """Print one line per run and one with the means, for each growth of patience."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="finished runs of stage 1, evaluated after every epoch")
    parser.add_argument("--patience", type=int, default=20)
    parser.add_argument("--after", type=int, default=0, help="epochs before patience counts")
    options = parser.parse_args()
    print("growth  run                             value   last / kept epoch")
    for growth in GROWTHS:
        fractions, epochs = [], 0
        for run in options.runs:
            history = read_json_lines(run / "history.jsonl", "runs")
            values = [line[f"validation.{SELECT}"] for line in history]
            stopping, last = _stopped(values, EarlyStopping(options.patience, after=options.after, growth=growth))
            mark = ">=" if last > len(values) else "  "
            print(f"{growth:<7} {run.name:<30} {stopping.kept:.4f} {mark} {last} / {stopping.kept_epoch}")
            fractions.append(max(stopping.kept or 0.0, 0.0) / max(values))
            epochs += last
        print(f"{growth:<7} {'all':<30} {sum(fractions) / len(fractions):.4f} of the best, {epochs} epochs\n")


def _stopped(values: list[float], stopping: EarlyStopping) -> tuple[EarlyStopping, int]:
    """Apply a rule to the values of epochs 1, 2, …, and then to epochs without a better one; gives the last epoch too."""
    for epoch in itertools.count(1):
        stopping.update(values[epoch - 1] if epoch <= len(values) else float("-inf"), epoch)
        if stopping.should_stop:
            return stopping, epoch
    raise AssertionError("a patience is finite")


if __name__ == "__main__":
    main()
