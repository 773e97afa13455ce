"""What only a GPU can show: no waiting in a step, fused attention, CUDA graphs, DeepSpeed over NCCL, a benchmark's figures."""

import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ptmrec_dist.config import EncoderConfig
from ptmrec_dist.distributed import World
from ptmrec_dist.distributed.engine import Engine, OneProcess
from ptmrec_dist.distributed.zero import DeepSpeedEngine
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.sources.loading import load_backbone
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


def _features_and_gradients(encoder: Encoder, batches: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Features of every batch, and the gradients that all of them leave together."""
    found = []
    for images, texts in batches:
        features = torch.cat(list(encoder.encode(images, texts).values()))
        found.append(features.detach())
        (features @ torch.linspace(-1, 1, features.shape[1], device="cuda")).sum().backward()
    tuned = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    found += [parameter.grad.clone() for parameter in tuned if parameter.grad is not None]
    encoder.zero_grad()
    return found


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("method", ["prompt", "lora", "adapter", "last_n", "full"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 2e-2)])
def test_recorded_passes_give_the_features_and_gradients_of_the_tower(
    tiny_project: Project, method: str, precision: str, tolerance: float
) -> None:
    """Also of shapes that come in turns, that come once, and that several micro-batches of a step have."""
    encoder = Encoder(load_backbone(EncoderConfig(model=str(tiny_project.clip))), ("image", "text"), precision)
    encoder.tune(method, None, torch.Generator().manual_seed(0))
    encoder.to("cuda").train()
    texts = encoder.tokenize([f"a cup number {number}" for number in range(6)]).cuda()
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, device="cuda")
    batches = [(images[:4], texts[:4]), (images[2:], texts[2:]), (images[:5], texts[:5]), (images[1:5], texts[1:5])]
    expected = _features_and_gradients(encoder, batches)
    encoder.record(torch.device("cuda"))
    for _ in range(3):  # recorded when a shape comes a second time
        for ours, theirs in zip(_features_and_gradients(encoder, batches), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance / 10)
    assert all(len(tower.replays) == 2 for tower in encoder.recorded.values())


def _weights_after_steps(make_engine: str, stage: int) -> list[Tensor]:
    """Weights of a small network after three steps of Adam on the GPU."""
    device = torch.device("cuda", 0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 5), nn.GELU(), nn.Linear(5, 1)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    engine: Engine = OneProcess(model, optimizer)
    if make_engine == "deepspeed":
        dist.init_process_group("nccl")
        engine = DeepSpeedEngine(model, optimizer, World(0, 1, device), stage, accumulation=2, grad_clip=0.0)
    rows = torch.randn(3, 2, 4, 7, generator=torch.Generator().manual_seed(1)).to(device)
    for window in rows:
        for index, batch in enumerate(window):
            engine.backward(engine(batch).square().mean() / 2, last=index == 1)
        assert engine.step()
    with engine.whole():
        return [parameter.detach().cpu().clone() for parameter in model.parameters()]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeed_over_nccl_takes_the_steps_of_one_process(stage: int) -> None:
    (expected,), (found,) = (run_on_ranks(1, _weights_after_steps, name, stage) for name in ("one", "deepspeed"))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(theirs))


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
