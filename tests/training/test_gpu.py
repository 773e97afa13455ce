"""What only a GPU can show: no waiting for the device inside a step, attention in fused kernels, the benchmark's figures."""

import subprocess
import sys

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.conftest import REPOSITORY, Project
from tests.ranks import run_on_ranks
from tests.training.tuner_world import Case, make_batch, make_tuner

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def _forward_and_backward_without_waiting(project: Project) -> bool:
    device = torch.device("cuda")
    tuner, dataset = make_tuner(project.shards, project.features, project.clip, Case(), device=device)
    batch = make_batch(tuner, dataset, [0, 1, 2, 3])
    for mode in ("default", "error"):  # the first pass may set things up
        torch.cuda.set_sync_debug_mode(mode)
        torch.stack(list(tuner(batch.to(device), 1).values())).sum().backward()
    torch.cuda.set_sync_debug_mode("default")
    return True


@pytest.mark.gpu
@needs_gpu
def test_a_step_never_waits_for_the_device(tiny_project: Project) -> None:
    assert run_on_ranks(1, _forward_and_backward_without_waiting, tiny_project) == [True]


@pytest.mark.gpu
@needs_gpu
def test_the_image_tower_runs_on_flash_attention(tiny_project: Project) -> None:
    tuner, _ = make_tuner(tiny_project.shards, tiny_project.features, tiny_project.clip, Case())
    assert tuner.encoder is not None
    encoder = tuner.encoder.to("cuda")
    encoder.precision = "bf16"
    encoder.towers.pop("text")
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, device="cuda")
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        encoder.encode(images, None)["image"].sum().backward()


@pytest.mark.slow
def test_the_benchmark_measures_a_small_model_on_any_device(tiny_project: Project) -> None:
    options = ["--models", str(tiny_project.clip), "--batch", "4", "--length", "2", "--depth", "2", "--steps", "1"]
    command = [sys.executable, "-m", "benchmarks.stage2", *options]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert lines[-3].split()[:3] == ["model", "precision", "items/s"]
    for line, precision in zip(lines[-2:], ("fp32", "bf16"), strict=True):
        _, found, items, rate, share, memory = line.split()
        assert found == precision
        assert float(items) > 0
        assert float(rate) > 0
        assert float(share.rstrip("%")) > 0
        assert float(memory) > 0
