"""PMMRec's fusion against its equation, written out with the weights of the block."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptmrec_dist.config.content_sequences import PMMRecConfig
from ptmrec_dist.config.recommenders import recommender_config
from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.errors import UserError
from ptmrec_dist.recommenders.base import Inputs
from ptmrec_dist.recommenders.layers import linear_map
from ptmrec_dist.recommenders.sequences import ITEMS
from ptmrec_dist.recommenders.sequential.fusion import FUSED, MergeAttention, Tokens
from ptmrec_dist.recommenders.sequential.pmmrec import PMMRec

WIDTHS, DIM, HEADS = {"image": 5, "text": 3}, 8, 2


def _projections(widths: dict[str, int], dim: int) -> dict[str, nn.Linear]:
    return {name: linear_map(width, dim) for name, width in widths.items()}


def _fusion(first: bool = False, widths: dict[str, int] = WIDTHS) -> MergeAttention:
    torch.manual_seed(0)
    fusion = MergeAttention(_projections(widths, DIM), DIM, HEADS, 0.1, first).eval().double()
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.normal_(std=0.7)
    return fusion


def _tokens(items: int = 3) -> Tokens:
    """Two of the texts are shorter than the third."""
    generator = torch.Generator().manual_seed(1)
    image, text = (
        torch.randn(items, length, width, generator=generator).double() for length, width in ((4, 5), (6, 3))
    )
    lengths = torch.tensor([2, 6, 3])[:items]
    return {
        "image": (image, torch.ones(items, 4, dtype=torch.bool)),
        "text": (text, torch.arange(6) < lengths[:, None]),
    }


def _linear(layer: torch.nn.Linear, inputs: Tensor) -> Tensor:
    return inputs @ layer.weight.T + layer.bias


def _normed(layer: torch.nn.LayerNorm, inputs: Tensor) -> Tensor:
    variance = inputs.var(unbiased=False)
    return (inputs - inputs.mean()) / (variance + layer.eps).sqrt() * layer.weight + layer.bias


def _fused(fusion: MergeAttention, rows: list[Tensor]) -> Tensor:
    """Output of the class token of one item, whose projected tokens are `rows`, head by head."""
    block = fusion.block
    assert block is not None
    attention, sequence, width = block.self_attn, torch.stack([fusion.class_D, *rows]), DIM // HEADS
    query, key, value = (attention.in_proj_weight @ sequence.T + attention.in_proj_bias[:, None]).T.split(DIM, dim=1)
    heads = []
    for head in range(HEADS):
        part = slice(head * width, (head + 1) * width)
        weights = torch.softmax(key[:, part] @ query[0, part] / math.sqrt(width), dim=0)
        heads.append(weights @ value[:, part])
    state = _normed(block.norm1, fusion.class_D + _linear(attention.out_proj, torch.cat(heads)))
    inner = F.gelu(_linear(block.linear1, state))
    return _normed(block.norm2, state + _linear(block.linear2, inner))


@pytest.mark.parametrize("first", [False, True])
def test_the_fusion_is_one_block_over_its_class_token_and_all_tokens_but_padding(first: bool) -> None:
    fusion, tokens = _fusion(first), _tokens()
    found = fusion(tokens)
    for item in range(3):
        rows: dict[str, list[Tensor]] = {}
        for name in WIDTHS:
            states, mask = tokens[name]
            rows[name] = [_linear(fusion.projections[name], token) for token in states[item][mask[item]]]
            alone = rows[name][0] if first else torch.stack(rows[name]).mean(dim=0)
            torch.testing.assert_close(found[name][item], alone)
        torch.testing.assert_close(found[FUSED][item], _fused(fusion, rows["image"] + rows["text"]))


def test_what_stands_in_the_padding_changes_nothing_and_no_item_is_no_error() -> None:
    fusion, tokens = _fusion(), _tokens()
    states, mask = tokens["text"]
    others = states.where(mask[:, :, None], 1e3)
    for name, vectors in fusion({**tokens, "text": (others, mask)}).items():
        torch.testing.assert_close(vectors, fusion(tokens)[name])
    assert all(vectors.shape == (0, DIM) for vectors in fusion(_tokens(0)).values())


def test_one_modality_is_read_without_a_fusion() -> None:
    fusion = _fusion(widths={"text": 3})
    assert {name.split(".")[0] for name, _ in fusion.named_parameters()} == {"projections"}
    found = fusion(_tokens())
    assert torch.equal(found[FUSED], found["text"])


def _model(features: dict[str, Tensor], **settings: object) -> PMMRec:
    torch.manual_seed(0)
    nothing = Interactions(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    return PMMRec(Inputs(0, 4, nothing, features), PMMRecConfig(dim=DIM, fusion_heads=HEADS, **settings)).eval()  # type: ignore[arg-type]


def test_frozen_features_are_one_token_each_and_what_was_fused_before_is_not_fused_again() -> None:
    features = {name: torch.randn(4, width) for name, width in WIDTHS.items()}
    model = _model(features)
    ones = torch.ones(4, 1, dtype=torch.bool)
    fused = model.fuse({name: (table[:, None], ones) for name, table in features.items()})
    views = model.views(features)
    assert views.keys() == {ITEMS, "image", "text"}
    for stored in (features, fused):
        torch.testing.assert_close(model.item_vectors(stored), fused[FUSED])
        torch.testing.assert_close(model.cold_items(stored), fused[FUSED])
        torch.testing.assert_close(model.views(stored)["text"], views["text"])


def test_widths_of_tokens_may_differ_from_those_of_features() -> None:
    model = _model({name: torch.randn(4, width) for name, width in WIDTHS.items()}, text_width=7)
    assert model.fusion.projections["text"].weight.shape == (DIM, 7)
    assert model.fusion.projections["image"].weight.shape == (DIM, 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fusion_heads": 3}, r"model\.fusion_heads: got 3, expected a divisor of --model\.dim 64"),
        ({"shuffled": 0.7, "replaced": 0.4}, r"model\.replaced: got 0\.4, expected at most 0\.3"),
        ({"contrast": "all"}, r"model\.contrast: got 'all', expected one of nicl, icl, vcl, none"),
        ({"temperature": 0.0}, r"model\.temperature: got 0\.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recommender_config("pmmrec", **settings)


def test_fused_items_start_with_length_1_and_apart() -> None:
    torch.manual_seed(0)
    fusion = MergeAttention(_projections({"image": 24, "text": 32}, 64), dim=64, heads=4, dropout=0.0, first=False)
    rows = {name: F.normalize(torch.randn(50, width), dim=1) for name, width in (("image", 24), ("text", 32))}
    tokens = {name: (table[:, None], torch.ones(50, 1, dtype=torch.bool)) for name, table in rows.items()}
    with torch.no_grad():
        fused = fusion(tokens)[FUSED]
    torch.testing.assert_close(fused.norm(dim=1), torch.ones(50), rtol=1e-3, atol=1e-3)
    assert (
        fused @ fused.T
    ).mean() < 0.6  # with matrices of N(0, 0.02) they would have all but the class token in common
