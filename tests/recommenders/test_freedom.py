import pytest
import torch
import torch.nn.functional as F

from ptmrec_dist.recommenders.general.freedom import FREEDOM
from tests.recommenders.conftest import Toy


def dense_item_graph(toy: Toy, weights: dict[str, float], knn: int) -> torch.Tensor:
    graph = torch.zeros(toy.num_items, toy.num_items)
    warm = sorted(set(toy.train.items.tolist()))
    for modality, weight in weights.items():
        for item in warm:
            others = [other for other in warm if other != item]
            cosines = torch.cosine_similarity(toy.features[modality][[item]], toy.features[modality][others])
            for position in cosines.argsort(descending=True)[:knn].tolist():
                graph[item, others[position]] += weight / knn
    return graph


def dense_representations(model: FREEDOM, toy: Toy, item_graph: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    layer = torch.cat([model.user_embeddings.weight, model.item_embeddings.weight])
    adjacency = toy.adjacency()
    mean = (layer + adjacency @ layer + adjacency @ adjacency @ layer) / 3
    return mean[: toy.num_users], mean[toy.num_users :] + item_graph @ model.item_embeddings.weight


@pytest.mark.parametrize("weights", [{"image": 0.3, "text": 0.7}, {"image": 1.0}, {"text": 1.0}])
def test_representations_equal_the_dense_ones(toy: Toy, weights: dict[str, float]) -> None:
    model = toy.build("freedom", tuple(weights), dim=3, knn=2, image_weight=0.3)
    expected = dense_representations(model, toy, dense_item_graph(toy, weights, 2))
    for got, want in zip(toy.vectors(model), expected):
        torch.testing.assert_close(got, want)
    torch.testing.assert_close(toy.id_vectors(model), toy.vectors(model))


def test_loss_terms_equal_the_formula(toy: Toy) -> None:
    model = toy.build("freedom", dim=3, knn=2, reg_weight=0.2)
    users, items = toy.vectors(model)
    u, p, n = toy.users, toy.positives, toy.negatives
    terms = toy.loss(model)
    assert set(terms) == {"bpr", "bpr_image", "bpr_text"}
    scores = users @ items.T
    torch.testing.assert_close(terms["bpr"], F.softplus(scores[u, n] - scores[u, p]))
    for modality, table in toy.features.items():
        scores = users @ (table @ model.maps[modality].weight.T).T
        torch.testing.assert_close(terms[f"bpr_{modality}"], 0.2 * F.softplus(scores[u, n] - scores[u, p]))


def test_gradients_equal_those_of_the_dense_model(toy: Toy) -> None:
    model = toy.build("freedom", dim=3, knn=2, image_weight=0.3)
    toy.loss(model)["bpr"].mean().backward()
    got = model.user_embeddings.weight.grad, model.item_embeddings.weight.grad
    users, items = dense_representations(model, toy, dense_item_graph(toy, {"image": 0.3, "text": 0.7}, 2))
    gaps = items[toy.positives] - items[toy.negatives]
    loss = F.softplus(-(users[toy.users] * gaps).sum(dim=1)).mean()
    expected = torch.autograd.grad(loss, [model.user_embeddings.weight, model.item_embeddings.weight])
    torch.testing.assert_close(got, expected)


def test_untrained_embeddings_of_cold_items_affect_no_other_node(toy: Toy) -> None:
    model = toy.build("freedom", dim=3, knn=4)
    before = toy.vectors(model)
    with torch.no_grad():
        model.item_embeddings.weight[toy.cold_items] += 100
    after = toy.vectors(model)
    torch.testing.assert_close(after[0], before[0])
    torch.testing.assert_close(after[1][: toy.cold_items[0]], before[1][: toy.cold_items[0]])


def test_cold_items_are_scored_by_the_mean_of_their_features_under_fitted_maps(toy: Toy) -> None:
    model = toy.build("freedom", dim=3)
    model.fit_cold_map(toy.features)
    weights = {modality: projection.weight for modality, projection in model.projections.items()}
    projected = [toy.features[modality][toy.cold_items] @ weight.T for modality, weight in weights.items()]
    torch.testing.assert_close(toy.cold_vectors(model), (projected[0] + projected[1]) / 2)


def test_the_maps_of_cold_items_are_fitted_to_the_vectors_of_an_evaluation_and_leave_training_alone(toy: Toy) -> None:
    model = toy.build("freedom", dim=3, edge_dropout=0.5)
    trained = {name: weight.clone() for name, weight in model.maps.state_dict().items()}
    model.train().start_epoch(torch.Generator().manual_seed(0))
    model.fit_cold_map(toy.features)
    in_training = {name: weight.clone() for name, weight in model.projections.state_dict().items()}
    assert model.training
    model.eval().fit_cold_map(toy.features)
    torch.testing.assert_close(dict(model.projections.state_dict()), in_training)
    torch.testing.assert_close(dict(model.maps.state_dict()), trained)


def test_training_uses_the_pruned_graph_of_the_epoch_and_evaluation_the_whole_one(toy: Toy) -> None:
    model = toy.build("freedom", dim=3, edge_dropout=0.5)
    whole = toy.vectors(model.eval())[0]
    generator = torch.Generator().manual_seed(0)
    model.train().start_epoch(generator)
    first = toy.vectors(model)[0]
    model.start_epoch(generator)
    second = toy.vectors(model)[0]
    assert not torch.allclose(first, whole)
    assert not torch.allclose(first, second)
    torch.testing.assert_close(toy.vectors(model.eval())[0], whole)


def test_without_edge_dropout_every_epoch_uses_the_whole_graph(toy: Toy) -> None:
    model = toy.build("freedom", dim=3, edge_dropout=0.0)
    whole = toy.vectors(model)
    model.start_epoch(torch.Generator().manual_seed(0))
    torch.testing.assert_close(toy.vectors(model), whole)
