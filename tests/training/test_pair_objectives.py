"""Hard negatives and masked words against loops; the objectives of a VLMo over ranks, and learned by heart."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ptmrec_dist import cli
from ptmrec_dist.config import EncoderConfig, method_config
from ptmrec_dist.data.stream import ItemBatch
from ptmrec_dist.distributed import World, join_world, sum_over_ranks
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.sources.loading import load_backbone
from ptmrec_dist.training.objectives.masking import IGNORED, Vocabulary, mask_words
from ptmrec_dist.training.objectives.matching import hard_negatives, matching_loss
from ptmrec_dist.training.objectives.unified import UnifiedPairs
from tests.conftest import Project
from tests.ranks import run_on_ranks


def test_hard_negatives_follow_the_softmax_of_other_pairs() -> None:
    logits = torch.tensor([[9.0, 2.0, 1.0, -1.0], [0.5, 0.0, 400.0, 3.0]])
    own = torch.tensor([0, 3])
    uniform = (torch.arange(2000) + 0.5) / 2000
    found = hard_negatives(logits.repeat(2000, 1), own.repeat(2000), uniform.repeat_interleave(2))
    for row in range(2):
        soft = [math.exp(float(value - logits[row].max())) for value in logits[row]]
        weights = [0 if column == own[row] else soft[column] / sum(soft) + 1e-4 for column in range(4)]
        counts = torch.bincount(found[row::2], minlength=4)
        for column in range(4):
            assert counts[column].item() / 2000 == pytest.approx(weights[column] / sum(weights), abs=1e-3)


def test_hard_negative_of_two_pairs_is_always_the_other() -> None:
    logits = torch.tensor([[500.0, -500.0], [0.0, 0.0]])
    for uniform in (0.0, 0.5, 1 - 2**-24):
        assert hard_negatives(logits, torch.tensor([0, 1]), torch.full((2,), uniform)).tolist() == [1, 0]


def test_matching_loss_takes_pairs_as_yes_and_others_as_no() -> None:
    yes, no = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, -1.0]])
    found = matching_loss(yes, no, yes)
    expected = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_masking_hides_whole_words_and_no_special_token() -> None:
    """Ids: 0 padding, 1 class, 2 end, 3 mask; 4 to 9 words, of which 8 and 9 continue one."""
    special, continues = torch.arange(10) < 4, torch.arange(10) >= 8
    vocabulary = Vocabulary(3, special, continues)
    ids = torch.tensor([[1, 4, 8, 9, 5, 8, 6, 2, 0, 0]]).repeat(4000, 1)
    uniform = torch.rand(4000, 10, 3, generator=torch.Generator().manual_seed(0))
    masked, labels = mask_words(ids, uniform, vocabulary, rate=0.15)
    hidden = labels != IGNORED
    assert not hidden[:, [0, 7, 8, 9]].any()
    assert torch.equal(hidden[:, 1], hidden[:, 2])
    assert torch.equal(hidden[:, 1], hidden[:, 3])
    assert torch.equal(hidden[:, 4], hidden[:, 5])
    assert torch.equal(labels[hidden], ids[hidden])
    assert torch.equal(masked[~hidden], ids[~hidden])
    for column in (1, 4, 6):
        assert hidden[:, column].float().mean().item() == pytest.approx(0.15, abs=0.02)
    replaced = masked[hidden]
    assert (replaced == 3).float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert (replaced == ids[hidden]).float().mean().item() == pytest.approx(0.1 + 0.1 / 6, abs=0.02)
    assert not special[replaced[replaced != 3]].any()


OBJECTIVES = ("itc", "itm", "mlm")


def _pairs(rows: slice) -> ItemBatch:
    pixels = torch.randint(0, 256, (6, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    texts = ["red lamp", "a blue chair", "two green cups", "lamp 7", "the shoe", "a table, large"]
    ids = load_backbone(EncoderConfig(model="vlmo:tiny")).tokenize(texts)[rows]
    used = int((ids != 0).any(dim=0).sum()) if len(ids) else ids.shape[1]  # every rank trims its own texts
    return ItemBatch(torch.arange(6)[rows], pixels[rows], ids[:, :used])


def _objective(world: World) -> UnifiedPairs:
    encoder = Encoder(load_backbone(EncoderConfig(model="vlmo:tiny")), ("image", "text"))
    encoder.tune("full", method_config("full"), torch.Generator(), OBJECTIVES)
    return UnifiedPairs(encoder, OBJECTIVES, mask_rate=0.3, seed=5, world=world)


def _terms_and_gradients(rows_of_ranks: list[tuple[int, ...]]) -> list[tuple[dict[str, float], dict[str, Tensor]]]:
    """Terms and gradients of a step, as an engine averages them over the ranks, for each way to divide the pairs."""
    world = join_world("cpu")
    found = []
    for rows in rows_of_ranks:
        first, objective = sum(rows[: world.rank]), _objective(world)
        terms = objective(_pairs(slice(first, first + rows[world.rank])), step=3)
        sum(terms.values()).backward()
        gradients = {
            name: sum_over_ranks(torch.zeros_like(value) if value.grad is None else value.grad) / world.size
            for name, value in objective.trained().items()
        }
        found.append(({name: sum_over_ranks(term).item() / world.size for name, term in terms.items()}, gradients))
    return found


@pytest.mark.slow
def test_terms_and_gradients_are_equal_on_any_number_of_ranks() -> None:
    ((terms, gradients),) = _terms_and_gradients([(6,)])
    assert terms.keys() == set(OBJECTIVES)
    for found_terms, found in run_on_ranks(2, _terms_and_gradients, [(4, 2), (6, 0)])[0]:
        assert found_terms == pytest.approx(terms, rel=1e-5)
        for name, gradient in gradients.items():
            np.testing.assert_allclose(found[name], gradient, rtol=1e-4, atol=1e-5, err_msg=name)


def test_every_weight_of_a_vlmo_learns_but_the_words_that_do_not_occur() -> None:
    objective = _objective(World(0, 1, torch.device("cpu")))
    sum(objective(_pairs(slice(0, 6)), step=0).values()).backward()
    still = [name for name, value in objective.trained().items() if value.grad is None or not value.grad.any()]
    assert still == []


@pytest.mark.slow
def test_sixteen_pairs_are_learned_by_heart() -> None:
    """Each image then finds its own text, each text its own image."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.randint(0, 256, (16, 3, 4, 4), generator=generator).float()
    things = ["lamp", "chair", "cup", "shoe", "table", "hat", "book", "bag"]
    texts = [f"{things[number % 8]} {things[number // 2]}" for number in range(16)]
    objective = _objective(World(0, 1, torch.device("cpu")))
    encoder = objective.encoder
    batch = ItemBatch(torch.arange(16), F.interpolate(colours, 64).to(torch.uint8), encoder.tokenize(texts))
    optimizer = torch.optim.AdamW(list(objective.trained().values()), lr=3e-4, betas=(0.9, 0.98))
    losses = []
    for step in range(30):
        optimizer.zero_grad()
        terms = objective(batch, step)
        loss = sum(terms.values())
        loss.backward()
        optimizer.step()
        losses.append({name: term.item() for name, term in terms.items()})
    with torch.no_grad():
        images, words, _ = encoder.backbone.contrasted(encoder.encode(batch.images, batch.texts))
        similar = images @ words.T
    own = torch.arange(16)
    assert torch.equal(similar.argmax(dim=1), own)
    assert torch.equal(similar.argmax(dim=0), own)
    assert all(losses[-1][name] < losses[0][name] for name in OBJECTIVES)


def test_a_last_step_of_one_pair_has_no_negatives() -> None:
    terms = _objective(World(0, 1, torch.device("cpu")))(_pairs(slice(0, 1)), step=0)
    assert terms["itc"].item() == pytest.approx(0, abs=1e-6)
    assert 0 < terms["itm"].item() < 5


def _contrastive(project: Project, out: Path, *options: str, model: str = "vlmo:tiny") -> int:
    words = ["--shards", str(project.shards), "--encoder.model", model, "--out", str(out), "--device", "cpu"]
    words += ["--batch_size", "24", "--epochs", "1", "--optim.encoder_lr", "1e-3", "--tracking.enabled", "false"]
    return cli.run("contrastive", [*words, *options])


@pytest.mark.slow
@pytest.mark.parametrize(("method", "objectives"), [("lora", "itc,itm,mlm"), ("prompt", "itc")])
def test_a_fine_tuned_vlmo_is_an_encoder_with_its_heads(
    tiny_project: Project, tmp_path: Path, method: str, objectives: str
) -> None:
    assert _contrastive(tiny_project, tmp_path / "out", "--objectives", objectives, "--tuning.method", method) == 0
    history = json.loads((tmp_path / "out" / "history.jsonl").read_text().splitlines()[0])
    assert "loss" in history
    before, after = (load_backbone(EncoderConfig(model=name)) for name in ("vlmo:tiny", str(tmp_path / "out")))
    again = load_backbone(EncoderConfig(model=f"vlmo:{tmp_path / 'out'}"))
    assert again.fingerprint == after.fingerprint != before.fingerprint
    pairs = _pairs(slice(0, 6))
    old, new = (Encoder(backbone, ("image", "text")) for backbone in (before, after))
    for modality, rows in new.encode(pairs.images, pairs.texts).items():
        assert (rows - old.encode(pairs.images, pairs.texts)[modality]).abs().max() > 1e-3
    for objective in objectives.split(","):
        moved = zip(before.heads(objective), after.heads(objective), strict=True)
        assert all(not torch.equal(*weights) for weights in moved if weights[0].ndim > 1)


def test_objectives_that_an_encoder_cannot_learn_are_refused_by_one_line(
    tiny_project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = {
        "does not read an image and a text together": (("--objectives", "itc,itm"), str(tiny_project.clip)),
        "take no part in reading": (("--objectives", "itc,mlm", "--tuning.method", "prompt"), "vlmo:tiny"),
        "objectives: got 'itm', expected itc": (("--objectives", "itm"), "vlmo:tiny"),
        "batch_size: got 1": (("--objectives", "itc,itm", "--batch_size", "1"), "vlmo:tiny"),
        "mask_rate": (("--mask_rate", "1.5"), "vlmo:tiny"),
    }
    for message, (options, model) in cases.items():
        assert _contrastive(tiny_project, tmp_path / "out", *options, model=model) == 2
        error = capsys.readouterr().err
        assert message in error, error
        assert error.count("\n") == 1
        assert not (tmp_path / "out").exists()
