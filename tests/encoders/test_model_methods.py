"""Every tuning method in models of transformers and timm: where it fits it tunes all that it should, else it is refused."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ptmrec_dist.config.tuning import METHODS, method_config
from ptmrec_dist.distributed import gather_rows
from ptmrec_dist.encoders.tuning.attention import opened
from ptmrec_dist.encoders.tuning.base import TuningMethod
from ptmrec_dist.errors import UserError
from tests.encoders.models import IMAGE, PADDING, TEXT, ModelTower, build
from tests.ranks import run_on_ranks

SETTINGS: dict[str, dict[str, Any]] = {
    "prompt": {"depth": 2, "length": 3},
    "lora": {"rank": 2, "alpha": 6},
    "adapter": {"bottleneck": 5},
    "last_n": {"n": 1},
    "full": {},
}
REFUSED = {
    "deberta-v2": ["prompt"],
    "beit": ["prompt"],
    **{kind: ["prompt", "adapter"] for kind in ("swin", "resnet", "convnext", "efficientnet", "regnet")},
}
"""All other methods fit."""


def _method(name: str) -> TuningMethod[Any]:
    method: TuningMethod[Any] = METHODS[name].load()(method_config(name, **SETTINGS[name]))
    return method


def _tuned(kind: str, name: str) -> tuple[ModelTower, Tensor, dict[str, nn.Parameter], TuningMethod[Any]]:
    """The tower with a method, its inputs, and what is tuned."""
    tower, batch = build(kind)
    method = _method(name)
    beside = nn.ModuleDict(method.attach(method.chosen({"text": tower}), torch.Generator().manual_seed(0)))
    weights = {**dict(tower.model.named_parameters()), **dict(beside.named_parameters())}
    return tower, batch, {name: weight for name, weight in weights.items() if weight.requires_grad}, method


def _rows(tower: ModelTower, batch: Tensor) -> Tensor:
    return F.normalize(tower.encode(batch), dim=1)


FITTING = [(kind, name) for kind in (*TEXT, *IMAGE) for name in SETTINGS if name not in REFUSED.get(kind, [])]


@pytest.mark.parametrize(("kind", "name"), FITTING)
def test_a_method_changes_nothing_at_first_then_all_that_it_tunes_and_no_bit_of_the_rest(kind: str, name: str) -> None:
    plain, _ = build(kind)
    tower, batch, tuned, method = _tuned(kind, name)
    before = _rows(plain, batch)
    frozen = {name: weight.clone() for name, weight in tower.model.state_dict().items() if name not in tuned}
    if name != "prompt":
        torch.testing.assert_close(_rows(tower, batch), before, rtol=0, atol=1e-6)
    optimizer = torch.optim.AdamW(tuned.values(), lr=1e-2, weight_decay=0.0)
    target = torch.randn(before.shape, generator=torch.Generator().manual_seed(0))
    for _ in range(2):  # weights behind one that starts at zero have a gradient from the second step on
        optimizer.zero_grad()
        (_rows(tower, batch) * target).sum().backward()
        optimizer.step()
    assert all(weight.grad is not None for weight in tuned.values())
    assert sum(bool(weight.grad.any()) for weight in tuned.values()) >= 0.9 * len(tuned)  # ReLU may be dead at a layer
    after = _rows(tower, batch).detach()
    assert (after - before).abs().max() > 1e-4
    for name, weight in tower.model.state_dict().items():
        if name in frozen:  # buffers too: running statistics
            assert torch.equal(weight, frozen[name]), name
    if kind in TEXT:  # a text without padding has the features that it has among longer ones
        alone = _rows(tower, batch[1:2, : int((batch[1] != PADDING).sum())])
        torch.testing.assert_close(alone[0], after[1], rtol=0, atol=1e-5)
    method.merge({"text": tower})
    torch.testing.assert_close(_rows(tower, batch), after, rtol=0, atol=1e-5)
    if name in ("lora", "last_n", "full"):
        assert tower.model.state_dict().keys() == plain.model.state_dict().keys()


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in REFUSED.items() for name in names])
def test_a_model_that_cannot_take_a_method_is_refused_with_what_it_takes(kind: str, name: str) -> None:
    tower, _ = build(kind)
    takes = [other for other in METHODS if other not in REFUSED[kind]]
    message = rf"got {name}, but the image tower .* has no .*; expected {', '.join(takes[:-1])} or none$"
    with pytest.raises(UserError, match=message):
        _method(name).chosen({"image": tower})


@pytest.mark.parametrize(("kind", "name"), [(kind, "lora") for kind in (*TEXT, *IMAGE)])
def test_a_random_update_of_any_layer_changes_the_features(kind: str, name: str) -> None:
    tower, batch, tuned, _ = _tuned(kind, name)
    before = _rows(tower, batch)
    unchanged = []
    with torch.no_grad():
        for weight_name, weight in tuned.items():
            if "lora_B" in weight_name:
                weight.normal_(0, 5, generator=torch.Generator().manual_seed(0))
                unchanged += [weight_name] if torch.equal(_rows(tower, batch), before) else []
                weight.zero_()
    assert not unchanged
    assert torch.equal(_rows(tower, batch), before)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_prompts_of_a_decoder_are_tokens_at_position_zero_before_the_text(kind: str) -> None:
    """Against the model's own forward on embeddings, with a prompt in the first block alone: no rotation, causal order."""
    tower, batch = build(kind)
    ids = batch[[0, 2]]
    method = METHODS["prompt"].load()(method_config("prompt", depth=1, length=3))
    vectors = torch.randn(3, 24, generator=torch.Generator().manual_seed(0))
    embedded = torch.cat([vectors.expand(2, -1, -1), tower.model.get_input_embeddings()(ids)], dim=1)
    positions = torch.tensor([[0, 0, 0, *range(ids.shape[1])]])
    mask = torch.ones(embedded.shape[:2], dtype=torch.int64)  # without one, each position 0 would begin another text
    expected = tower.model(inputs_embeds=embedded, position_ids=positions, attention_mask=mask).last_hidden_state[:, -1]
    attached = method.attach({"text": tower}, torch.Generator())
    attached["text"].vectors_PLD.data[0] = vectors
    torch.testing.assert_close(tower.encode(ids), expected, rtol=1e-4, atol=1e-5)


# The first block of ModernBERT has no norm in front of its attention.
@pytest.mark.parametrize("kind", [kind for kind in TEXT if kind not in ("deberta-v2", "modernbert")])
def test_the_length_of_a_prompt_vector_does_not_matter(kind: str) -> None:
    """Whether blocks normalise what they read or what they return: BERT's must not drown them."""
    tower, batch = build(kind)
    method = METHODS["prompt"].load()(method_config("prompt", depth=2, length=3))
    attached = method.attach({"text": tower}, torch.Generator().manual_seed(0))
    attached["text"].vectors_PLD.data.mul_(50)
    before = _rows(tower, batch)
    attached["text"].vectors_PLD.data.mul_(50)
    torch.testing.assert_close(_rows(tower, batch), before, rtol=0, atol=1e-3)


def test_prompts_that_a_model_cannot_take_after_all_are_refused_and_leave_it_as_it_was() -> None:
    tower, batch = build("bert")
    before = _rows(tower, batch)
    whole = tower.encode

    def fixed_length(inputs: Tensor) -> Tensor:
        def check(block: nn.Module, arguments: tuple[Any, ...]) -> None:
            assert arguments[0].shape[1] == inputs.shape[1], "seven tokens alone"

        with tower.blocks[1].register_forward_pre_hook(check):
            return whole(inputs)

    tower.encode = fixed_length  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"BertModel does not run with prompts .*seven tokens alone"):
        _method("prompt").attach({"text": tower}, torch.Generator())
    assert torch.equal(_rows(tower, batch), before)


def test_attention_that_cannot_be_opened_is_refused() -> None:
    with pytest.raises(UserError, match="lora cannot be attached to MultiheadAttention"):
        opened(nn.MultiheadAttention(8, 2, kdim=4))


def _gradients(kind: str, name: str, rank: int = 0, ranks: int = 1) -> dict[str, Tensor]:
    """Gradient of a loss over the rows of all ranks, each of which encodes its share."""
    tower, batch, tuned, _ = _tuned(kind, name)
    own = torch.cat([batch, batch.flip(0)])[rank::ranks]
    rows = _rows(tower, own)
    everyone = gather_rows(rows, len(own)) if ranks > 1 else rows
    target = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(0))
    ((rows @ everyone.T).exp().sum(dim=1).log() + rows @ target).mean().backward()
    for weight in tuned.values():
        if ranks > 1:
            dist.all_reduce(weight.grad)
            weight.grad /= ranks
    return {name: weight.grad for name, weight in tuned.items() if weight.grad is not None}


REPRESENTATIVES = [
    ("mpnet", "prompt"),
    ("qwen3", "lora"),
    ("dinov3", "prompt"),
    ("efficientnet", "lora"),
    ("resnet", "full"),
]


def _gradients_on_rank() -> list[dict[str, Tensor]]:
    dist.init_process_group("gloo")
    return [_gradients(kind, name, dist.get_rank(), 2) for kind, name in REPRESENTATIVES]


@pytest.mark.slow
def test_two_ranks_have_the_gradients_of_one() -> None:
    for gradients, (kind, name) in zip(run_on_ranks(2, _gradients_on_rank)[0], REPRESENTATIVES, strict=True):
        expected = _gradients(kind, name)
        assert gradients.keys() == expected.keys()
        for weight, value in expected.items():
            torch.testing.assert_close(torch.from_numpy(gradients[weight]), value, rtol=1e-4, atol=1e-5)
