"""The engine of one process: accumulation, clipping and checks of gradients without DeepSpeed."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ptmrec_dist.distributed import engine as engine_module
from ptmrec_dist.distributed.engine import OneProcess
from tests.conftest import REPOSITORY, Project

_RUN = """
import sys
from pathlib import Path
from ptmrec_dist import cli
code = cli.run("stage2", sys.argv[1:])
print("imported:", sorted({name.partition(".")[0] for name in sys.modules} & {"deepspeed", "ray", "mlflow"}))
sys.exit(code)
"""


@pytest.mark.slow
def test_a_run_of_one_process_imports_no_deepspeed(tiny_project: Project, tmp_path: Path) -> None:
    arguments = [
        *("--stage1", str(tiny_project.stage1), "--out", f"{tmp_path}/run", "--epochs", "1", "--batch_size", "12"),
        *("--accumulation", "2", "--optim.grad_clip", "0.1", "--zero.stage", "2"),
        *("--device", "cpu", "--tracking.enabled", "false"),
    ]
    command = [sys.executable, "-c", _RUN, *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "imported: []"


def _model() -> tuple[nn.Linear, torch.optim.Optimizer, list[Tensor]]:
    torch.manual_seed(0)
    model = nn.Linear(5, 1)
    batches = list(torch.randn(3, 4, 5))
    return model, torch.optim.SGD(model.parameters(), lr=0.1), batches


@pytest.mark.parametrize("grad_clip", [0.0, 1e-3, 1e3])
def test_micro_batches_make_the_step_of_their_mean_with_its_gradient_clipped(grad_clip: float) -> None:
    model, optimizer, batches = _model()
    engine = OneProcess(model, optimizer, grad_clip)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    expected = torch.autograd.grad(model(torch.cat(batches)).square().mean(), list(model.parameters()))
    norm = torch.cat([gradient.flatten() for gradient in expected]).norm().item()
    factor = min(1.0, grad_clip / norm) if grad_clip else 1.0
    for _ in range(2):  # the second step does not remember the gradient of the first
        for index, batch in enumerate(batches):
            engine.backward(engine(batch).square().mean() / len(batches), last=index == len(batches) - 1)
        assert engine.gradient_norm().item() == pytest.approx(norm, rel=1e-5)
        assert engine.step()
        for parameter, old, gradient in zip(model.parameters(), before, expected, strict=True):
            torch.testing.assert_close(parameter.detach(), old - 0.1 * factor * gradient)
            parameter.data.copy_(old)


@pytest.mark.parametrize("grad_clip", [0.0, 0.1])
def test_the_norm_of_the_gradient_is_computed_once_a_step(grad_clip: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer, batches = _model()
    engine, computed, norm_of = OneProcess(model, optimizer, grad_clip), [], engine_module.gradient_norm
    monkeypatch.setattr(engine_module, "gradient_norm", lambda grads: computed.append(norm_of(grads)) or computed[-1])
    for steps in (1, 2):
        for batch in batches:
            engine.backward(engine(batch).square().mean(), last=batch is batches[-1])
        assert engine.gradient_norm() is computed[-1]
        engine.step()
        assert len(computed) == steps
    assert computed[0] != computed[1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_gradient_that_is_not_finite_shows_in_the_norm(value: float) -> None:
    model, optimizer, batches = _model()
    engine = OneProcess(model, optimizer)
    output = engine(batches[0])
    output.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([2]), value))
    engine.backward(output.mean(), last=True)
    assert not engine.gradient_norm().isfinite()
