"""Peak memory of each rank while a checkpoint is written and read, beyond what it held before, on the CPU.

    python -m benchmarks.checkpoint_memory [--values 20] [--ranks 2]

What is read lies in pages of the file, which count although the system could drop them.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.memory import _status
from ptmrec_dist.distributed import barrier, join_world
from ptmrec_dist.distributed.engines import make_engine
from ptmrec_dist.training.checkpoint import load_engine, save_engine
from tests.ranks import run_on_ranks

TABLES = 20


class Model(nn.Module):
    """Tables of equal size, all of which a step changes."""

    def __init__(self, values: int) -> None:
        super().__init__()
        self.recommender = nn.ParameterList(torch.zeros(values // TABLES) for _ in range(TABLES))

    def forward(self) -> Tensor:
        """Compute something that every value has a gradient of."""
        return torch.stack([table.mean() for table in self.recommender]).sum()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--values", type=int, default=20, help="millions of trained values")
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    print("| ZeRO | rank | write, MB | read, MB |\n| --- | --- | --- | --- |")
    for zero in (1, 3):
        with tempfile.TemporaryDirectory() as folder:
            written = run_on_ranks(options.ranks, _peak, save_engine, 1, options.values, zero, Path(folder))
            read = run_on_ranks(options.ranks, _peak, load_engine, 0, options.values, zero, Path(folder))
        for rank, sizes in enumerate(zip(written, read, strict=True)):
            print("|", zero, "|", rank, "|", " | ".join(f"{size / 1e6:,.0f}" for size in sizes), "|", flush=True)


def _peak(do: Callable[[Any, Any, Path], None], steps: int, millions: int, zero: int, folder: Path) -> int:
    model = Model(millions * 1_000_000)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    engine = make_engine(model, optimizer, join_world("cpu"), zero_stage=zero)
    for _ in range(steps):
        engine.backward(engine(), last=True)
        engine.step()
    barrier()
    with open("/proc/self/clear_refs", "w") as marks:
        marks.write("5")  # the peak starts anew
    held = _status("VmRSS")
    do(engine, dict(model.named_parameters()), folder)
    return _status("VmHWM") - held


if __name__ == "__main__":
    main()
