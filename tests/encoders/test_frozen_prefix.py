"""Towers that start at the first tuned block: the same features and gradients as from the inputs, whatever was stored."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ptmrec_dist.config import EncoderConfig, LastNConfig
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.frozen_prefix import FrozenPrefix, frozen_blocks
from ptmrec_dist.encoders.sources.loading import load_backbone
from ptmrec_dist.encoders.stored_states import StatesWriter, StoredStates, complete_states
from ptmrec_dist.encoders.tower import Tower
from ptmrec_dist.training.frozen_states import frozen_prefixes
from tests.encoders.models import IMAGE, TEXT, build
from tests.encoders.tiny_sources import write_text_encoder
from tests.tiny_clip import write_tiny_clip

TEXTS = ["a red cup", "two", "the long way home over the hills and far away"]


def _store(folder: Path, prefix: FrozenPrefix, inputs: Tensor, items: list[int], ranks: int = 1) -> None:
    """Store the states of some of the inputs, which are items 0, 1, ..., in one part or several."""
    folder.mkdir(parents=True)
    rows = list(prefix.rows(inputs))
    for rank in range(ranks):
        with StatesWriter(folder, rank) as writer:
            for item in items[rank::ranks]:
                writer.add(item, rows[item])
            writer.complete()
    complete_states(folder, "key", ranks, rows[0])
    prefix.stored = StoredStates.matching(folder, "key", len(inputs))


def _gradients(tower: Tower, rows_BD: Tensor) -> list[Tensor]:
    (rows_BD * torch.linspace(-1, 1, rows_BD.numel(), dtype=rows_BD.dtype).view_as(rows_BD)).sum().backward()
    trained = [parameter for parameter in tower.parameters() if parameter.requires_grad]
    found = [parameter.grad for parameter in trained if parameter.grad is not None]
    assert len(found) > 2
    for parameter in trained:
        parameter.grad = None
    return found


def _assert_exact(folder: Path, tower: Tower, inputs: Tensor, tolerance: float) -> None:
    """In any order, all of the states stored or some, in one file or two: equal to the tower in float64."""
    assert list(FrozenPrefix(tower, frozen_blocks(tower)).rows(inputs[:0])) == []  # of a rank without items left
    prefix, order = FrozenPrefix(tower, frozen_blocks(tower)), torch.tensor([2, 0, 1])
    expected_BD = tower.encode(inputs)
    expected = _gradients(tower, expected_BD)
    for number, (items, ranks) in enumerate([([0, 1, 2], 1), ([0, 2], 2), ([], 1)]):
        _store(folder / str(number), prefix, inputs, items, ranks)
        found_BD = prefix.encode(inputs[order], order)[order.argsort()]
        torch.testing.assert_close(found_BD, expected_BD, rtol=tolerance, atol=tolerance)
        for gradient, wanted in zip(_gradients(tower, found_BD), expected, strict=True):
            torch.testing.assert_close(gradient, wanted, rtol=10 * tolerance, atol=tolerance)
    again = tower.encode(inputs)  # nothing of it stays behind
    torch.testing.assert_close(again, expected_BD, rtol=0, atol=0)


@pytest.mark.slow
def test_every_family_starts_at_its_first_tuned_block_or_says_that_it_cannot(tmp_path: Path) -> None:
    refused = []
    for kind in [*TEXT, *IMAGE]:
        tower, inputs = build(kind)
        tower.blocks[-1].requires_grad_()
        if not FrozenPrefix(tower, frozen_blocks(tower)).is_exact(inputs):
            refused.append(kind)
            continue
        tower.model.double()
        if kind in IMAGE:  # they read float32
            tower.model.register_forward_pre_hook(lambda model, given: (given[0].double(),))
        _assert_exact(tmp_path / kind, tower, inputs, 1e-5 if kind == "gemma2" else 1e-10)  # its norms are float32
    assert refused == ["t5"]  # its first block computes biases of positions for all others


def test_what_is_trained_before_the_blocks_is_not_skipped() -> None:
    tower, inputs = build("bert")
    tower.blocks[-1].requires_grad_()
    tower.model.embeddings.requires_grad_()
    assert not FrozenPrefix(tower, 1).is_exact(inputs)


def _encoders(tmp_path: Path) -> dict[str, Encoder]:
    clip = EncoderConfig(model=str(write_tiny_clip(tmp_path / "clip")))
    bert = EncoderConfig(text=f"hf:{write_text_encoder(tmp_path / 'bert')}")
    return {"clip": Encoder(load_backbone(clip), ("image", "text")), "bert": Encoder(load_backbone(bert), ("text",))}


@pytest.mark.slow
@pytest.mark.parametrize("checkpointed", [False, True])
def test_an_encoder_gives_the_same_features_and_tokens_by_item(tmp_path: Path, checkpointed: bool) -> None:
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for name, encoder in _encoders(tmp_path).items():
        if checkpointed:
            encoder = Encoder(encoder.backbone, tuple(encoder.towers), gradient_checkpointing=True)
        encoder.tune("last_n", LastNConfig(n=1), torch.Generator())
        texts, items = encoder.tokenize(TEXTS), torch.arange(3)
        given = images if "image" in encoder.towers else None
        features, tokens = encoder.encode(given, texts), encoder.encode(given, texts, tokens=True)
        for modality, prefix in frozen_prefixes(encoder).items():
            assert prefix is not None
            _store(tmp_path / name / modality, prefix, texts if modality == "text" else images, [0, 1, 2])
            encoder.prefixes[modality] = prefix
        assert encoder.prefixes.keys() == encoder.towers.keys()
        for rows in (torch.tensor([2, 0, 1]), torch.tensor([1]), torch.tensor([], dtype=torch.int64)):
            some = None if given is None else given[rows]
            for sort in (False, True):
                encoder.sort_by_length = sort
                found = encoder.encode(some, texts[rows], items=items[rows])
                for modality, expected in features.items():
                    torch.testing.assert_close(found[modality], expected[rows], rtol=1e-5, atol=1e-6)
            states = encoder.encode(some, texts[rows], items=items[rows], tokens=True)
            for modality, expected in tokens.items():
                mask = states[modality].mask
                torch.testing.assert_close(mask, expected.mask[rows, : mask.shape[1]])
                counted = states[modality].states[mask]
                torch.testing.assert_close(counted, expected.states[rows][expected.mask[rows]], rtol=1e-5, atol=1e-5)


def test_prompts_and_low_rank_updates_leave_no_block_frozen(tmp_path: Path) -> None:
    for method in ("prompt", "lora", "adapter", "full"):
        for encoder in _encoders(tmp_path / method).values():
            encoder.tune(method, None, torch.Generator().manual_seed(0))
            assert frozen_prefixes(encoder) == {}


def test_states_that_are_incomplete_damaged_or_of_something_else_are_not_read(tmp_path: Path) -> None:
    tower, inputs = build("bert")
    prefix = FrozenPrefix(tower, 1)
    _store(tmp_path / "a", prefix, inputs, [0, 1])
    stored = StoredStates.matching(tmp_path / "a", "key", 3)
    assert stored is not None
    assert stored.num_items == 2
    assert StoredStates.matching(tmp_path / "a", "another", 3) is None
    assert StoredStates.matching(tmp_path / "none", "key", 3) is None
    assert StoredStates.matching(tmp_path / "a", "key", 1) is None
    part = tmp_path / "a" / "0.states"
    part.write_bytes(part.read_bytes()[:-4])
    assert StoredStates.matching(tmp_path / "a", "key", 3) is None
    (tmp_path / "a" / "manifest.json").write_text('{"key": "key"}')
    assert StoredStates.matching(tmp_path / "a", "key", 3) is None
