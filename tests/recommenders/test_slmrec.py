import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ptmrec_dist.recommenders.general.slmrec import SLMRec
from tests.recommenders.conftest import Toy
from tests.recommenders.multi_pass import dense_id_vectors, dense_pass, dense_vectors, layer_0, read_out
from tests.recommenders.multi_view import check_terms, looped_contrast


@pytest.mark.parametrize("layers", [0, 3])
def test_scores_are_cosines_over_the_temperature_or_dot_products(toy: Toy, layers: int) -> None:
    for vectors, dense in ((toy.vectors, dense_vectors), (toy.id_vectors, dense_id_vectors)):
        by_dot = toy.build("slmrec", dim=4, layers=layers, rank_by="dot").eval()
        users, items = dense(by_dot, toy)
        for found, expected in zip(vectors(by_dot), (users, items), strict=True):
            torch.testing.assert_close(found, expected)
        by_cosine = toy.build("slmrec", dim=4, layers=layers, temperature=0.25).eval()
        found_users, found_items = vectors(by_cosine)
        expected = F.cosine_similarity(users[:, None], items[None, :], dim=2) / 0.25
        torch.testing.assert_close(found_users @ found_items.T, expected)


def _expected(model: SLMRec, toy: Toy) -> dict[str, Tensor]:
    """The main term and the penalty, row by row."""
    users, items = dense_vectors(model, toy)
    u, p = toy.users, toy.positives
    squares = (model.user_embeddings.weight[u] ** 2).sum(1) + (model.item_embeddings.weight[p] ** 2).sum(1)
    return {"contrast_pairs": looped_contrast(users[u], items[p], 0.3), "l2": 0.2 / 2 * squares}


def test_with_debias_each_negative_has_one_part_in_its_number_of_interactions(toy: Toy) -> None:
    model = toy.build("slmrec", dim=4, temperature=0.3, debias=True, cl_weight=0.0)
    users, items = dense_vectors(model, toy)
    cosines = F.cosine_similarity(users[toy.users][:, None], items[toy.positives][None, :], dim=2)
    times = [toy.train.items.tolist().count(item) for item in toy.positives.tolist()]
    assert len(set(times)) > 1
    sums = (torch.exp(cosines / 0.3) / torch.tensor(times)).sum(dim=1)
    expected = -torch.log(torch.exp(cosines.diagonal() / 0.3) / sums)
    terms = toy.loss(model)
    check_terms(model, {"contrast_pairs": terms["contrast_pairs"]}, {"contrast_pairs": expected})


def _build(toy: Toy, ssl: str, modalities: tuple[str, ...] = ("image", "text"), rank_by: str = "cosine") -> SLMRec:
    model = toy.build(
        "slmrec",
        modalities,
        dim=4,
        layers=2,
        temperature=0.3,
        cl_temperature=0.5,
        cl_weight=0.7,
        reg_weight=0.2,
        debias=False,
        ssl=ssl,
        rank_by=rank_by,
    )
    assert isinstance(model, SLMRec)
    model.start_epoch(Generator().manual_seed(3))
    return model


def _looped_alignment(anchors: Tensor, keys: Tensor, temperature: float) -> Tensor:
    terms = []
    for row, anchor in enumerate(anchors):
        weights = torch.stack([torch.exp(torch.dot(anchor, key) / temperature) for key in keys])
        terms.append(-torch.log(weights[row] / weights.sum()))
    return torch.stack(terms)


@pytest.mark.parametrize("modalities", [("image", "text"), ("text",)])
@pytest.mark.parametrize("rank_by", ["cosine", "dot"])
def test_fine_and_coarse_terms_equal_the_dense_ones(toy: Toy, modalities: tuple[str, ...], rank_by: str) -> None:
    model = _build(toy, "fac", modalities, rank_by)
    ids, *contents = [dense_pass(model, toy.adjacency(), items)[toy.num_users :] for items in layer_0(model, toy)]
    expected, anchor = _expected(model, toy), ids
    for modality, table, width in zip(modalities, contents, (4, 2), strict=False):
        ours, theirs = model.anchors[modality], model.targets[modality]
        anchor = anchor @ ours.weight.T + ours.bias
        keys = table @ theirs.weight.T
        assert anchor.shape[1] == keys.shape[1] == width
        aligned = _looped_alignment(anchor[toy.positives], keys[toy.positives], 0.5)
        expected[f"contrast_{modality}"] = 0.7 * aligned
    check_terms(model, toy.loss(model), expected)


def _contrast_of_views(toy: Toy, views: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    (users_1, items_1), (users_2, items_2) = views
    u, p = toy.users, toy.positives
    return {
        "contrast_users": 0.7 * looped_contrast(users_1[u], users_2[u], 0.5),
        "contrast_items": 0.7 * looped_contrast(items_1[p], items_2[p], 0.5),
    }


def test_feature_dropout_terms_equal_the_dense_ones(toy: Toy) -> None:
    model, generator = _build(toy, "fd"), Generator().manual_seed(3)
    views = []
    for _ in range(2):
        layer = torch.cat([torch.cat([model.user_embeddings.weight, items]) for items in layer_0(model, toy)], dim=1)
        total = layer
        for _ in range(2):
            uniform = [torch.rand(rows, 3 * 4, generator=generator) for rows in (toy.num_users, toy.num_items)]
            layer = (toy.adjacency() @ layer) * (torch.cat(uniform) >= 0.3) / 0.7
            total = total + layer
        views.append(read_out(model, toy, [total / 3]))
    check_terms(model, toy.loss(model), _expected(model, toy) | _contrast_of_views(toy, views))


def test_feature_masking_terms_equal_the_dense_ones(toy: Toy) -> None:
    model = _build(toy, "fm")
    masked = torch.randperm(3, generator=Generator().manual_seed(3))[:2].tolist()
    views = []
    for one in masked:
        starts = [items * (number != one) for number, items in enumerate(layer_0(model, toy))]
        views.append(read_out(model, toy, [dense_pass(model, toy.adjacency(), items) for items in starts]))
    check_terms(model, toy.loss(model), _expected(model, toy) | _contrast_of_views(toy, views))


def test_each_pair_of_passes_is_masked_and_never_the_same_one_twice(toy: Toy) -> None:
    model, generator = toy.build("slmrec", dim=4, ssl="fm"), Generator().manual_seed(3)
    model.start_epoch(generator)
    seen = set()
    for _ in range(60):
        tables = model.tables(toy.features)
        changed = [
            (tables[f"items_{view}"] != tables["items"])
            .view(-1, 3, 4)
            .any(dim=2)
            .any(dim=0)
            .nonzero()
            .flatten()
            .tolist()
            for view in (1, 2)
        ]
        assert all(len(passes) == 1 for passes in changed)
        seen.add((changed[0][0], changed[1][0]))
    assert seen == {(one, other) for one in range(3) for other in range(3) if one != other}
