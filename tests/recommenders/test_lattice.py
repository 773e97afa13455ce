import math

import pytest
import torch
from torch import Tensor

from ptmrec_dist.config.recommenders import recommender_config
from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.errors import UserError
from ptmrec_dist.recommenders import build_recommender
from ptmrec_dist.recommenders.general.lattice import LATTICE
from tests.memory import largest_tensor
from tests.recommenders.conftest import Toy

MODALITIES = [("image", "text"), ("image",)]


def _graph_of_cosines(toy: Toy, table: Tensor, knn: int) -> Tensor:
    """K: each item's cosines with the nearest items with interactions, itself among them with 1; none below zero."""
    warm = sorted(set(toy.train.items.tolist()))
    rows = []
    for item in range(toy.num_items):
        cosines = {other: torch.cosine_similarity(table[item], table[other], dim=0) for other in warm if other != item}
        nearest = sorted(cosines, key=lambda other: -cosines[other].item())[: knn - 1]
        values = {other: cosines[other].clamp(min=0) for other in nearest}
        if item in warm:
            values[item] = torch.ones(())
        rows.append(torch.stack([values.get(other, torch.zeros(())) for other in range(toy.num_items)]))
    return torch.stack(rows)


def _laplacian(graph: Tensor) -> Tensor:
    degrees = graph.sum(dim=1)
    scale = torch.stack([degree.rsqrt() if degree > 0 else torch.ones(()) for degree in degrees])
    return scale[:, None] * graph * scale


def _dense_vectors(model: LATTICE, toy: Toy, knn: int, layers: int) -> tuple[Tensor, Tensor]:
    """Users and items, with a dense graph of items from the weights as they are."""
    weights = torch.exp(model.logits) / torch.exp(model.logits).sum()
    learned, initial = torch.zeros(toy.num_items, toy.num_items), torch.zeros(toy.num_items, toy.num_items)
    for weight, modality in zip(weights, model.modalities, strict=True):
        table, linear = toy.features[modality], model.maps[modality]
        learned = learned + weight * _graph_of_cosines(toy, table @ linear.weight.T + linear.bias, knn)
        initial = initial + weight * _laplacian(_graph_of_cosines(toy, table, knn))
    graph = (1 - model.initial_weight) * _laplacian(learned) + model.initial_weight * initial
    similar = graph @ model.item_embeddings.weight

    joined = torch.eye(toy.num_users + toy.num_items)
    for user, item in zip(toy.train.users, toy.train.items, strict=True):
        joined[user, toy.num_users + item] = joined[toy.num_users + item, user] = 1
    joined = joined / joined.sum(dim=1, keepdim=True)
    layer = total = torch.cat([model.user_embeddings.weight, model.item_embeddings.weight])
    for _ in range(layers):
        layer = joined @ layer
        total = total + layer
    users, items = (total / (layers + 1)).split([toy.num_users, toy.num_items])
    return users, items + similar / similar.norm(dim=1, keepdim=True)


def _built(toy: Toy, modalities: tuple[str, ...] = ("image", "text"), **settings: object) -> LATTICE:
    """A model in training whose projections have biases, and whose modalities weigh differently."""
    model = toy.build("lattice", modalities, **{"dim": 4, "knn": 4, **settings})
    assert isinstance(model, LATTICE)
    with torch.no_grad():
        model.logits.copy_(torch.tensor([0.3, -0.4])[: len(modalities)])
        for linear in model.maps.values():
            torch.nn.init.normal_(linear.bias)
    return model.train()


def _moved(model: LATTICE) -> None:
    """Move the weights that shape the learned graph as a large step would."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in (*model.maps.parameters(), model.logits):
            parameter.add_(torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("gradient", ["once", "every"])
@pytest.mark.parametrize("modalities", MODALITIES)
def test_representations_and_their_gradients_equal_the_dense_ones(
    toy: Toy, modalities: tuple[str, ...], gradient: str
) -> None:
    model = _built(toy, modalities, layers=2, graph_gradient=gradient, initial_weight=0.6)
    model.rebuild(toy.features)
    found = torch.cat(toy.vectors(model))
    expected = torch.cat(_dense_vectors(model, toy, 4, 2))
    torch.testing.assert_close(found, expected)
    trained = [value for name, value in model.named_parameters() if not name.startswith("projections")]
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(0))
    for got, want in zip(
        *(torch.autograd.grad((table * weights).sum(), trained) for table in (found, expected)), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(torch.cat(toy.vectors(model.eval())), expected)


def test_terms_equal_the_formula(toy: Toy) -> None:
    model = _built(toy, reg_weight=0.3)
    model.rebuild(toy.features)
    users, items = toy.vectors(model)
    u, p, n = users[toy.users], items[toy.positives], items[toy.negatives]
    terms = toy.loss(model)
    assert set(terms) == {"bpr", "l2"}
    torch.testing.assert_close(terms["bpr"], torch.log(1 + torch.exp((u * (n - p)).sum(1))))
    torch.testing.assert_close(terms["l2"], 0.15 * ((u**2).sum(1) + (p**2).sum(1) + (n**2).sum(1)))


def test_once_an_epoch_the_graph_gets_a_gradient_and_is_constant_until_the_next(toy: Toy) -> None:
    model = _built(toy)
    shaping = [*model.maps.parameters(), model.logits]

    def gradients() -> list[Tensor]:
        return list(torch.autograd.grad(sum(term.mean() for term in toy.loss(model).values()), shaping))

    model.rebuild(toy.features)
    first, before = gradients(), toy.vectors(model)
    assert all(gradient.any() for gradient in first)
    model.finish_step()
    _moved(model)
    # Zero, not none: Adam then moves them by momentum, in one process as under DeepSpeed, which replaces none by zero.
    assert not any(gradient.any() for gradient in gradients())
    torch.testing.assert_close(toy.vectors(model), before)
    torch.testing.assert_close(toy.vectors(model.eval()), before)
    model.train().rebuild(toy.features)
    assert (toy.vectors(model)[1] - before[1]).norm() > 0.01
    assert all(gradient.any() for gradient in gradients())


def test_with_every_step_the_values_follow_weights_and_features_but_neighbours_wait_for_the_next_epoch(
    toy: Toy,
) -> None:
    model = _built(toy, graph_gradient="every")
    model.rebuild(toy.features)
    neighbours, before = model.neighbours.clone(), toy.vectors(model)
    model.finish_step()
    _moved(model)
    assert (toy.vectors(model)[1] - before[1]).norm() > 0.01
    assert torch.equal(model.neighbours, neighbours)
    features = {modality: table.clone().requires_grad_() for modality, table in toy.features.items()}
    terms = model.loss(toy.batch, model.tables(features), features)
    sum(term.mean() for term in terms.values()).backward()
    assert all(table.grad is not None and table.grad.any() for table in features.values())


@pytest.mark.parametrize("gradient", ["once", "every"])
def test_a_model_read_from_its_state_has_the_graph_that_was_in_use(toy: Toy, gradient: str) -> None:
    model, again = (_built(toy, graph_gradient=gradient) for _ in range(2))
    _moved(model)
    model.rebuild(toy.features)
    model.finish_step()
    _moved(model)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(toy.vectors(again), toy.vectors(model), rtol=0, atol=0)
    assert model.state_dict()["neighbours"].dtype == torch.int32


def test_untrained_embeddings_of_cold_items_affect_no_other_node_but_similar_items_affect_them(toy: Toy) -> None:
    model = _built(toy)
    model.rebuild(toy.features)
    before = toy.vectors(model)
    cold = torch.tensor(toy.cold_items)
    with torch.no_grad():
        model.item_embeddings.weight[cold] += 100
    after = toy.vectors(model)
    torch.testing.assert_close(after[0], before[0])
    torch.testing.assert_close(after[1][: toy.cold_items[0]], before[1][: toy.cold_items[0]])
    unit = after[1][cold] - model.item_embeddings.weight[cold]  # of a node without edges, C is its embedding
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(2), rtol=1e-4, atol=1e-4)


def test_items_without_features_and_opposite_items_give_finite_vectors_and_gradients(toy: Toy) -> None:
    for modality, table in toy.features.items():
        table[2] = 0
        if modality == "text":
            table[:] = 0
        table[5] = -table[6]
    model = _built(toy, graph_gradient="every", knn=12)
    model.rebuild(toy.features)
    sum(term.sum() for term in toy.loss(model).values()).backward()
    assert all(vectors.isfinite().all() for vectors in toy.vectors(model))
    assert all(value.grad is None or value.grad.isfinite().all() for value in model.parameters())


def test_no_table_of_items_by_items_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    items, generator = 3000, torch.Generator().manual_seed(0)
    monkeypatch.setattr("ptmrec_dist.recommenders.neighbours._BLOCK_SIMILARITIES", 2**16)
    monkeypatch.setattr("ptmrec_dist.recommenders.neighbours._BLOCK_NUMBERS", 2**16)
    features = {"image": torch.randn(items, 8, generator=generator)}
    train = Interactions(torch.arange(items).numpy() % 50, torch.arange(items).numpy())

    model = build_recommender(
        "lattice",
        num_users=50,
        num_items=items,
        train=train,
        features=features,
        modalities=("image",),
        config=recommender_config("lattice", dim=8, graph_gradient="every"),
    )

    def step() -> None:
        model.rebuild(features)
        model.tables(features)["items"].sum().backward()

    assert largest_tensor(step) < items * items  # bytes; a dense table takes four times as many


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"knn": 13}, r"model\.knn: got 13, expected fewer than the 13 items"),
        ({"knn": 1}, r"model\.knn: got 1, expected 2 or more"),
        ({"graph_gradient": "always"}, r"model\.graph_gradient: got 'always', expected one of once, every"),
        ({"initial_weight": 1.5}, r"model\.initial_weight: got 1.5, expected a number in \[0, 1\]"),
    ],
)
def test_settings_out_of_range_are_refused(toy: Toy, settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        toy.build("lattice", **settings)


def test_the_learned_part_weighs_what_the_setting_leaves(toy: Toy) -> None:
    model = _built(toy, initial_weight=1.0)
    model.rebuild(toy.features)
    before = toy.vectors(model)[1]
    model.cosines.fill_(math.pi)
    model.finish_step()
    torch.testing.assert_close(toy.vectors(model)[1], before)
