"""Speed and memory of a step of stage 2, relative to a matrix product measured in the same run. Needs no data or weights.

python -m benchmarks.stage2                                                 # ViT-B-32 and -16, batch 128, prompts 4 x 9
python -m benchmarks.stage2 --cuda_graphs                                   # forward and backward passes are replayed
python -m benchmarks.stage2 --models FOLDER --batch 8 --depth 2 --steps 2   # a small model, also on a CPU

FLOPs are counted by torch over a complete step, forward and backward as computed (a frozen backbone has no weight gradients);
their rate divided by that of the matrix product is the utilization of the device. Seconds are those of the CPU where it is the
device, on which other processes have little influence.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.transform import PreprocessCfg
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.clock import peak_bytes, seconds
from ptmrec_dist.config import EncoderConfig, OptimConfig, PromptConfig, Stage2Config, TrackingConfig
from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.data.pairs import TrainBatch
from ptmrec_dist.data.stream import ItemBatch
from ptmrec_dist.distributed import World, join_world
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.sources.loading import load_backbone
from ptmrec_dist.encoders.sources.open_clip import OpenClip, _unfold_scalars
from ptmrec_dist.encoders.sources.open_clip_texts import OpenClipTexts
from ptmrec_dist.recommenders import build_recommender
from ptmrec_dist.training.batches import StreamedBatches
from ptmrec_dist.training.negatives import KnownPositives
from ptmrec_dist.training.objectives.transfer import Transfer, TransferSettings
from ptmrec_dist.training.trainer import Trainer
from ptmrec_dist.training.tune import make_trainer
from tests.training.gradient_world import NoStream
from tests.training.steps import temporary_session

USERS, ITEMS, ROWS_PER_ITEM = 20_000, 7_000, 16


def main() -> None:
    """Print a line for each model and precision."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["ViT-B-32", "ViT-B-16"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--length", type=int, default=4)
    parser.add_argument("--depth", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cuda_graphs", action="store_true")
    options = parser.parse_args()
    world = join_world()
    rates = {precision: matmul_rate(precision, world.device) for precision in options.precisions}
    print("matrix product: " + ", ".join(f"{name} {rate / 1e12:.2f} TFLOP/s" for name, rate in rates.items()))
    print(f"{'model':<24} {'precision':<9} {'items/s':>9} {'TFLOP/s':>9} {'of matmul':>9} {'peak GB':>8}")
    for model in options.models:
        for precision in options.precisions:
            objective = make_objective(model, precision, options, world)
            config = Stage2Config(
                stage1=Path("none"),
                out=Path("none"),
                batch_size=options.batch * world.size,
                optim=OptimConfig(schedule="constant"),
                check_every=10,
                tracking=TrackingConfig(enabled=False),
            )
            with temporary_session(config, world) as session:
                trainer = make_trainer(config, session, objective, StreamedBatches(NoStream()))
                taken, flops = measure(trainer, options)
            rate = flops / taken
            utilization = rate / rates[precision]
            items = options.batch / taken
            name = Path(model).name
            used = f"{rate / 1e12:>9.3g} {100 * utilization:>8.3g}% {peak_bytes(world.device) / 1e9:>8.2f}"
            print(f"{name:<24} {precision:<9} {items:>9.1f} {used}")


def matmul_rate(precision: str, device: torch.device) -> float:
    """Best FLOP/s of a few square products; fp32 without TF32, as in the backbone."""
    size = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(8):
        start = seconds(device)
        left @ right
        best = max(best, 2 * size**3 / (seconds(device) - start))
    return best


def make_objective(model: str, precision: str, options: argparse.Namespace, world: World) -> Transfer:
    """The objective of stage 2 on random interactions, with VBPR."""
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(0)
    encoder = Encoder(_backbone(model), ("image", "text"), precision)
    prompts = PromptConfig(depth=options.depth, length=options.length)
    encoder.tune("prompt", prompts, torch.Generator().manual_seed(0))
    encoder.to(world.device)
    if options.cuda_graphs:
        encoder.record(world.device)
    rng = np.random.default_rng(0)
    items = np.repeat(np.arange(ITEMS), ROWS_PER_ITEM)
    train = Interactions(users=rng.integers(0, USERS, len(items)), items=items)
    features = {modality: torch.randn(ITEMS, width).to(world.device) for modality, width in encoder.widths.items()}
    recommender = build_recommender(
        "vbpr", num_users=USERS, num_items=ITEMS, train=train, features=features, modalities=tuple(features)
    ).to(world.device)
    known = KnownPositives(train, ITEMS, world.device)
    return Transfer(encoder, recommender, features, known, TransferSettings(weight=1.0), seed=0, rows=options.batch)


def measure(trainer: Trainer, options: argparse.Namespace) -> tuple[float, float]:
    """Seconds and FLOPs of a step; batches are in host memory, as from the loader."""
    batches = [_batch(trainer, options.batch, seed) for seed in range(4)]
    with FlopCounterMode(display=False) as counter:
        trainer.train_step([batches[1]])
    for batch in batches:  # what is made at first use is not timed
        trainer.train_step([batch])
    start = seconds(trainer.world.device)
    for step in range(options.steps):
        trainer.train_step([batches[step % 4]])
    return (seconds(trainer.world.device) - start) / options.steps, float(counter.get_total_flops())


def _batch(trainer: Trainer, size: int, seed: int) -> TrainBatch:
    encoder: Any = trainer.objective.encoder
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    height, width = encoder.backbone.image_config.size, encoder.backbone.image_config.size
    height, width = (height, width) if isinstance(height, int) else height
    images = torch.randint(0, 256, (size, 3, height, width), generator=generator, dtype=torch.uint8)
    texts = encoder.tokenize([f"product number {number} of a popular category, {seed}" for number in range(size)])
    items = torch.randperm(ITEMS, generator=generator)[:size]
    rows = size * ROWS_PER_ITEM
    content = ItemBatch(items, images, texts)
    return TrainBatch.of(content, rng.integers(0, USERS, rows), np.arange(rows) % size, np.arange(rows))


def _backbone(model: str) -> OpenClip:
    if Path(model).is_dir():
        return load_backbone(EncoderConfig(model=model))
    clip = open_clip.create_model(model, pretrained=None)
    _unfold_scalars(clip)
    clip.eval().requires_grad_(False)
    image_config = PreprocessCfg(**clip.visual.preprocess_cfg)
    return OpenClip(clip, "random", OpenClipTexts(open_clip.get_tokenizer(model)), image_config, {})


if __name__ == "__main__":
    main()
