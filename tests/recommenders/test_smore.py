import cmath

import torch

from tests.recommenders.conftest import Toy
from tests.recommenders.multi_view import (
    check_against,
    dense_collaborative,
    dense_cosine_graph,
    dense_view,
    preference,
)


def circulant(spectrum: torch.Tensor, dim: int) -> torch.Tensor:
    """The real matrix that multiplies every frequency k of a real signal by its own complex number, summed up by hand."""
    inverse = [[cmath.exp(2j * cmath.pi * k * position / dim) for k in range(dim)] for position in range(dim)]
    total = torch.zeros(dim, dim)
    for k in range(dim):
        real, imaginary = spectrum[min(k, dim - k)]
        sign = 1 if k <= dim // 2 else -1
        for position in range(dim):
            for source in range(dim):
                wave = inverse[position][k] * inverse[source][k].conjugate() / dim
                gained = real * wave.real - sign * imaginary * wave.imag
                total = total + torch.eye(dim)[position][:, None] * torch.eye(dim)[source] * gained
    return total


def convolved(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """What the product of two orthonormal spectra is a spectrum of: circular convolution, divided by sqrt(dim)."""
    dim = first.shape[1]
    values = [
        sum(first[:, source] * second[:, (position - source) % dim] for source in range(dim)) for position in range(dim)
    ]
    return torch.stack(values, dim=1) / dim**0.5


def test_representations_losses_and_gradients_equal_the_dense_ones(toy: Toy) -> None:
    model = toy.build("smore", dim=4, layers=3, image_knn=3, text_knn=4, cl_weight=0.3, reg_weight=0.2, temperature=0.5)
    with torch.no_grad():
        for linear in model.maps.values():
            linear.bias.normal_()
        for spectrum in model.filters.values():  # a real signal's first and last bins have no imaginary part
            spectrum[[0, 2], 1] = 0
    collaborative = dense_collaborative(model, toy, 3)
    graphs = {
        "image": dense_cosine_graph(toy, toy.features["image"], 3),
        "text": dense_cosine_graph(toy, toy.features["text"], 4),
    }
    graphs["fused"] = torch.maximum(graphs["image"], graphs["text"])
    assert ((graphs["image"] > 0) & (graphs["text"] > 0)).any()
    projected = {
        modality: toy.features[modality] @ model.maps[modality].weight.T + model.maps[modality].bias
        for modality in ("image", "text")
    }
    signals = projected | {"fused": convolved(projected["image"], projected["text"])}
    views = {
        view: dense_view(model, toy, graphs[view], view, signal @ circulant(model.filters[view], 4).T)
        for view, signal in signals.items()
    }
    weights = {}
    for modality in ("image", "text"):
        hidden, query = model.attention[modality][0], model.attention[modality][2].weight[0]
        weights[modality] = torch.exp(torch.tanh(views["fused"] @ hidden.weight.T + hidden.bias) @ query)[:, None]
    total = weights["image"] + weights["text"]
    weighted = {modality: weights[modality] / total * views[modality] for modality in weights}
    weighted["fused"] = views["fused"]
    side = sum(preference(model, view, collaborative) * table for view, table in weighted.items()) / 3
    check_against(model, toy, collaborative, side)


def test_dropout_leaves_out_its_fraction_of_the_preferences_in_training_only(toy: Toy) -> None:
    model = toy.build("smore", dim=8, dropout=0.5)
    with torch.no_grad():  # preferences of 1 for the fused view, which alone has any length
        for layer in model.preferences.values():
            layer.weight.zero_()
            layer.bias.fill_(100)
    whole = toy.vectors(model.eval())[1] - toy.id_vectors(model)[1]
    generator = torch.Generator().manual_seed(0)
    outputs = []
    for _ in range(400):
        model.train().start_epoch(generator)
        outputs.append(toy.vectors(model)[1] - toy.id_vectors(model)[1])
    again = toy.vectors(model)[1] - toy.id_vectors(model)[1]
    torch.testing.assert_close(again, outputs[-1])  # within an epoch the masks stay the same
    assert not torch.allclose(outputs[0], outputs[1])
    warm = whole[: toy.cold_items[0]]
    average = torch.stack(outputs).mean(dim=0)[: toy.cold_items[0]]
    assert (average - warm).norm() < 0.1 * warm.norm()
    torch.testing.assert_close(toy.vectors(model.eval())[1] - toy.id_vectors(model)[1], whole)


def test_the_loss_sees_what_dropout_kept(toy: Toy) -> None:
    model = toy.build("smore", dim=8, dropout=0.5, reg_weight=2.0)
    model.train().start_epoch(torch.Generator().manual_seed(0))
    users, items = toy.vectors(model)
    terms = toy.loss(model)
    rows = (users[toy.users], items[toy.positives], items[toy.negatives])
    torch.testing.assert_close(terms["l2"], sum((table**2).sum(dim=1) for table in rows))
