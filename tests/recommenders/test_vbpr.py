import pytest
import torch
import torch.nn.functional as F

from tests.recommenders.conftest import Toy


@pytest.mark.parametrize("modalities", [("image",), ("text",), ("image", "text")])
def test_scores_equal_two_dot_products_with_one_map_of_concatenated_features(
    toy: Toy, modalities: tuple[str, ...]
) -> None:
    model = toy.build("vbpr", modalities, dim=3)
    users, items = toy.vectors(model)
    one_map = torch.cat([model.maps[modality].weight for modality in modalities], dim=1)
    concatenated = torch.cat([toy.features[modality] for modality in modalities], dim=1)
    own, modal = model.user_embeddings.weight.split(3, dim=1)
    assert users.shape == (toy.num_users, 6)
    assert items.shape == (toy.num_items, 6)
    assert model.modalities == modalities
    torch.testing.assert_close(
        users @ items.T, own @ model.item_embeddings.weight.T + modal @ (one_map @ concatenated.T)
    )


def test_loss_terms_equal_the_formula_on_representations(toy: Toy) -> None:
    model = toy.build("vbpr", dim=3, reg_weight=0.2)
    users, items = toy.vectors(model)
    u, p, n = toy.users, toy.positives, toy.negatives
    scores = users @ items.T
    terms = toy.loss(model)
    squares = [
        model.user_embeddings.weight[u] ** 2,
        model.item_embeddings.weight[p] ** 2,
        model.item_embeddings.weight[n] ** 2,
    ]
    assert set(terms) == {"bpr", "l2"}
    torch.testing.assert_close(terms["bpr"], F.softplus(scores[u, n] - scores[u, p]))
    squares.append((items[p, 3:] - items[n, 3:]) ** 2)
    torch.testing.assert_close(terms["l2"], 0.1 * sum(square.sum(dim=1) for square in squares))


def test_a_cold_item_is_scored_by_the_mean_of_what_each_modality_predicts(toy: Toy) -> None:
    model = toy.build("vbpr", dim=3)
    users, items = toy.vectors(model)
    torch.testing.assert_close(torch.cat(toy.id_vectors(model)), torch.cat([users[:, :3], items[:, :3]]))
    assert not toy.cold_vectors(model).any()  # nothing is fitted yet
    for projection in model.projections.values():
        torch.nn.init.normal_(projection.weight)
    cold = torch.tensor(toy.cold_items)
    predicted = sum(toy.features[name][cold] @ model.projections[name].weight.T for name in ("image", "text")) / 2
    torch.testing.assert_close(toy.cold_vectors(model), predicted)


def test_gradients_reach_live_features_of_the_batch_only(toy: Toy) -> None:
    model = toy.build("vbpr", dim=3)
    image = toy.features["image"].clone().requires_grad_()
    terms = model.loss(toy.batch, {}, toy.features | {"image": image})
    terms["bpr"].sum().backward()
    touched = torch.zeros(toy.num_items, dtype=torch.bool)
    touched[torch.cat([toy.positives, toy.negatives])] = True
    assert (image.grad[~touched] == 0).all()
    assert image.grad[touched].abs().sum() > 0
