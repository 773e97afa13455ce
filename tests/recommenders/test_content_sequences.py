"""Items of recommenders that read sequences of features: their vectors and scores, against slow forms of the equations."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ptmrec_dist.config.recommenders import recommender_config
from ptmrec_dist.data.histories import PaddedHistories
from ptmrec_dist.errors import UserError
from ptmrec_dist.recommenders.base import Queries
from ptmrec_dist.recommenders.sequences import SequenceRecommender
from ptmrec_dist.recommenders.sequential import carca, unisrec, vqrec
from ptmrec_dist.recommenders.sequential.fdsa import FDSA
from tests.recommenders.conftest import Toy

LENGTH = 5


def _model(toy: Toy, name: str, **settings: object) -> SequenceRecommender:
    """A model in evaluation mode whose weights are large enough that everything matters."""
    model = toy.build(name, **{"dim": 4, "length": LENGTH, **settings}).eval()
    assert isinstance(model, SequenceRecommender)
    model.rebuild(toy.features)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # where layers normalise, 1 is added to
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model


def _joined(toy: Toy, item: int) -> Tensor:
    return torch.cat([toy.features["image"][item], toy.features["text"][item]])


def test_an_item_of_fdsa_is_its_id_beside_a_mixture_of_its_modalities(toy: Toy) -> None:
    model = _model(toy, "fdsa")
    assert isinstance(model, FDSA)
    vectors = model.item_vectors(toy.features)
    hidden, _, energy = model.field_attention
    for item in range(toy.num_items):
        fields, energies = [], []
        for modality in ("image", "text"):
            fields.append(model.maps[modality].weight @ toy.features[modality][item] + model.maps[modality].bias)
            energies.append(energy.weight[0] @ (hidden.weight @ fields[-1] + hidden.bias).clamp(min=0))
        weights = [energies[m].exp() / (energies[0].exp() + energies[1].exp()) for m in (0, 1)]
        own = model.item_embeddings.weight[item]
        torch.testing.assert_close(vectors[item], torch.cat([own, weights[0] * fields[0] + weights[1] * fields[1]]))
    torch.testing.assert_close(model.candidates(vectors), model.item_embeddings.weight)


def test_both_transformers_of_fdsa_read_the_same_positions(toy: Toy) -> None:
    """Swapping IDs and features, and the transformers' blocks with them, swaps what the last layer reads."""
    model = _model(toy, "fdsa")
    vectors, mask = torch.randn(2, LENGTH, 8), torch.tensor([[True] * 5, [False] * 2 + [True] * 3])
    before = model.encode(vectors, mask)
    ids, features = model.id_transformer.blocks.state_dict(), model.feature_blocks.blocks.state_dict()
    ids, features = ({name: value.clone() for name, value in state.items()} for state in (ids, features))
    model.id_transformer.blocks.load_state_dict(features)
    model.feature_blocks.blocks.load_state_dict(ids)
    with torch.no_grad():
        model.merge.weight.copy_(model.merge.weight.roll(4, dims=1))
    torch.testing.assert_close(model.encode(vectors.roll(4, dims=2), mask), before)


def test_an_item_of_unisrec_is_a_mixture_of_whitened_features(toy: Toy) -> None:
    model = _model(toy, "unisrec", experts=3)
    assert isinstance(model, unisrec.UniSRec)
    adaptor = model.adaptor
    with torch.no_grad():
        torch.nn.init.normal_(adaptor.gate_XK)
        torch.nn.init.normal_(adaptor.shifts_KX)
    vectors = model.item_vectors(toy.features)
    trained = sorted(set(toy.train.items.tolist()))
    standard = []
    for table in (toy.features[modality] for modality in model.modalities):
        centred = table - torch.stack([table[item] for item in trained]).mean(dim=0)
        standard.append(centred / torch.stack([centred[item].square().mean() for item in trained]).mean().sqrt())
    for item in range(toy.num_items):
        row, mixed = torch.cat([rows[item] for rows in standard]), torch.zeros(4)
        odds = [(row @ adaptor.gate_XK[:, expert]).exp() for expert in range(3)]
        for expert in range(3):
            mixed += odds[expert] / sum(odds) * (adaptor.maps[expert].weight @ (row - adaptor.shifts_KX[expert]))
        torch.testing.assert_close(vectors[item], mixed)


def test_items_of_unisrec_start_apart_although_their_features_have_much_in_common(toy: Toy) -> None:
    alike = {name: F.normalize(table + 9, dim=1) for name, table in toy.features.items()}
    items = F.normalize(_model(replace(toy, features=alike), "unisrec").item_vectors(alike), dim=1)
    assert (items @ items.T).mean() < 0.3


def test_gates_of_unisrec_are_noisy_in_training_alone(toy: Toy) -> None:
    model = _model(toy, "unisrec", expert_dropout=0.0)
    assert torch.equal(model.item_vectors(toy.features), model.item_vectors(toy.features))
    model.train()
    assert not torch.allclose(model.item_vectors(toy.features), model.item_vectors(toy.features))


def test_an_item_of_vqrec_is_the_mean_of_the_vectors_of_its_codes(toy: Toy) -> None:
    model = _model(toy, "vqrec", codebooks=2, bits=2)
    assert isinstance(model, vqrec.VQRec)
    quantiser, vectors = model.quantiser, model.item_vectors(toy.features)
    assert quantiser.rotation.shape == (10, 9)  # two parts of five numbers
    seen = set()
    for item in range(toy.num_items):
        rotated, chosen = quantiser.rotation @ _joined(toy, item), []
        for part in range(2):
            gaps = [(rotated[5 * part : 5 * part + 5] - centre).norm() for centre in quantiser.centroids_MKP[part]]
            chosen.append(int(torch.stack(gaps).argmin()))
        seen.add(tuple(chosen))
        assert model.codes_IM[item].tolist() == chosen
        code_vectors = [model.code_vectors.weight[4 * part + code] for part, code in enumerate(chosen)]
        torch.testing.assert_close(vectors[item], torch.stack(code_vectors).mean(dim=0))
    assert len(seen) > 4


def test_codes_are_those_of_faiss_and_fit_what_they_were_made_of(faiss: Any) -> None:
    rows = torch.randn(200, 12, generator=torch.Generator().manual_seed(0)) @ torch.randn(12, 12)
    quantiser = vqrec.ProductQuantiser(12, 3, 8)
    assert not quantiser.is_fitted
    quantiser.fit(rows)
    assert quantiser.is_fitted
    theirs = faiss.ProductQuantizer(12, 3, 3)
    faiss.copy_array_to_vector(quantiser.centroids_MKP.numpy().ravel(), theirs.centroids)
    rotated = np.ascontiguousarray((rows @ quantiser.rotation.T).numpy())
    packed = np.unpackbits(theirs.compute_codes(rotated), axis=1, bitorder="little")
    codes = packed[:, :9].reshape(-1, 3, 3) @ [1, 2, 4]
    np.testing.assert_array_equal(quantiser(rows), codes)
    restored = quantiser.centroids_MKP[torch.arange(3), torch.from_numpy(codes)].flatten(1) @ quantiser.rotation
    assert (restored - rows).square().sum() < 0.5 * (rows - rows.mean(dim=0)).square().sum()


def test_fewer_rows_than_columns_are_quantised_without_loss_where_each_has_a_code(faiss: Any) -> None:
    rows = torch.randn(4, 40, generator=torch.Generator().manual_seed(0))
    quantiser = vqrec.ProductQuantiser(40, 1, 4)
    quantiser.fit(rows)
    codes = quantiser(rows)[:, 0].tolist()
    assert sorted(codes) == [0, 1, 2, 3]
    torch.testing.assert_close(quantiser.centroids_MKP[0][codes] @ quantiser.rotation, rows, atol=1e-4, rtol=1e-4)


def test_codes_are_made_once_of_the_items_in_training(toy: Toy, faiss: Any) -> None:
    model = _model(toy, "vqrec")
    assert isinstance(model, vqrec.VQRec)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.rebuild({name: table.flip(0) for name, table in toy.features.items()})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    other = toy.build("vqrec", dim=4, length=LENGTH)
    other.rebuild(
        {name: table.index_fill(0, torch.tensor(toy.cold_items), 9.0) for name, table in toy.features.items()}
    )
    assert torch.equal(other.quantiser.centroids_MKP, model.quantiser.centroids_MKP)


def test_more_codes_than_items_in_training_are_refused(toy: Toy, faiss: Any) -> None:
    with pytest.raises(UserError, match=r"model\.bits: got 4, expected 3 or less: 11 items have training interactions"):
        toy.build("vqrec", bits=4)
    with pytest.raises(UserError, match=r"model\.bits: got 9, expected a number in \[1, 8\]"):
        recommender_config("vqrec", bits=9)


@pytest.mark.parametrize("name", ["unisrec", "vqrec"])
def test_items_without_ids_are_scored_by_their_cosine_whether_they_are_cold_or_not(toy: Toy, name: str) -> None:
    model = _model(toy, name, temperature=0.5)
    every = torch.arange(toy.num_items)
    torch.testing.assert_close(model.cold_items(toy.features), model.items(toy.features, model.tables(toy.features)))
    history = [3, 1, 8]
    tables = model.tables(toy.features)
    padded = PaddedHistories(torch.tensor([history]), torch.ones(1, 3, dtype=torch.bool))
    scores = model.score(model.users(Queries(torch.tensor([-1]), padded), tables), model.items({}, tables))[0]
    vectors = model.item_vectors(toy.features)
    state = model.transformer(vectors[history][None], torch.ones(1, 3, dtype=torch.bool))[0, -1]
    for item in every:
        cosine = vectors[item] @ state / vectors[item].norm() / state.norm()
        torch.testing.assert_close(scores[item], cosine / 0.5)


@pytest.mark.parametrize("name", ["fdsa", "carca"])
def test_the_id_of_a_cold_item_is_what_its_features_predict(toy: Toy, name: str) -> None:
    model = _model(toy, name)
    model.fit_cold_map(toy.features)
    predicted = (toy.features["image"] @ model.id_maps["image"].weight.T) / 2
    predicted += (toy.features["text"] @ model.id_maps["text"].weight.T) / 2
    assert predicted.any()
    read = model.tables(toy.features)["items"]
    warm = [item for item in range(toy.num_items) if item not in toy.cold_items]
    torch.testing.assert_close(read[warm], model.item_vectors(toy.features)[warm])
    with torch.no_grad():
        model.item_embeddings.weight[toy.cold_items] = predicted[toy.cold_items]
    expected = model.item_vectors(toy.features)
    torch.testing.assert_close(read, expected)  # histories read them so, too
    torch.testing.assert_close(toy.cold_vectors(model), model.candidates(expected)[toy.cold_items])


def _slow_carca(model: carca.CARCA, vectors: Tensor, history: list[int], item: int) -> Tensor:
    """The score of one candidate, head by head and position by position."""

    def project(layer: torch.nn.Module, row: Tensor) -> Tensor:
        found = layer.weight @ row + layer.bias
        return torch.where(found > 0, found, 0.2 * found)

    def attend(query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
        width, read = len(query) // model.heads, []
        for head in range(model.heads):
            part = slice(head * width, (head + 1) * width)
            odds = [(query[part] @ key[part] / width**0.5).exp() for key in keys]
            read.append(sum(odd * value[part] for odd, value in zip(odds, values, strict=True)) / sum(odds))
        return torch.cat(read)

    states = [vectors[i] for i in history]
    for block in model.blocks:
        normal = [block.query_norm(state) for state in states]
        keys, values = ([project(layer, state) for state in states] for layer in (block.key, block.value))
        found = []
        for position in range(len(states)):
            end = position + 1 if model.causal else len(states)
            read = attend(project(block.query, normal[position]), keys[:end], values[:end])
            inner = block.norm(normal[position] * read)
            first, last = block.network[0], block.network[3]
            found.append(inner + last.weight @ project(first, inner) + last.bias)
        states = found
    states = [model.norm(state) for state in states]
    keys, values = ([project(layer, state) for state in states] for layer in (model.key, model.value))
    read = attend(project(model.query, vectors[item]), keys, values)
    return model.logit.weight[0] @ (vectors[item] * read) + model.logit.bias[0]


@pytest.mark.parametrize("attention", ["causal", "full"])
def test_candidates_of_carca_attend_to_the_history(toy: Toy, attention: str) -> None:
    model = _model(toy, "carca", heads=2, layers=2, attention=attention)
    assert isinstance(model, carca.CARCA)
    vectors = model.item_vectors(toy.features)
    for item in range(toy.num_items):
        features = model.feature_map.weight @ _joined(toy, item) + model.feature_map.bias
        both = torch.cat([2 * model.item_embeddings.weight[item], features])
        torch.testing.assert_close(vectors[item], model.mix.weight @ both + model.mix.bias)
    history = [3, 1, 8]
    padded = PaddedHistories(torch.tensor([[0, *history]]), torch.tensor([[False, True, True, True]]))
    tables = {"items": vectors}
    user = model.users(Queries(torch.tensor([-1]), padded), tables)
    scores = model.score(user, model.items({}, tables))[0]
    for item in range(toy.num_items):
        torch.testing.assert_close(scores[item], _slow_carca(model, vectors, history, item), rtol=1e-4, atol=1e-4)


def test_a_position_of_carca_is_a_history_of_its_own_unless_all_attend_to_all(toy: Toy) -> None:
    mask = torch.tensor([[False] * 2 + [True] * 3, [True] * 5])
    for attention in ("causal", "full"):
        model = _model(toy, "carca", attention=attention)
        vectors = model.item_vectors(toy.features)
        read, candidates = vectors[torch.tensor([[0, 0, 4, 7, 2], [1, 9, 3, 3, 5]])], model.candidates(vectors)
        states = model.states(read, mask)
        torch.testing.assert_close(states[:, -1], model.last_state(read, mask))
        for row, position in ((0, 3), (1, 2)):
            scores = model.score(states[row, position][None], candidates)
            alone = model.last_state(read[row : row + 1, : position + 1], mask[row : row + 1, : position + 1])
            same = torch.allclose(model.score(alone, candidates), scores, atol=1e-4)
            assert same == (attention == "causal")
        many = candidates[torch.tensor([[0, 5], [7, 7]])]
        every = model.score(states[:, -1], candidates)
        torch.testing.assert_close(
            model.score_own(states[:, -1], many), every.gather(1, torch.tensor([[0, 5], [7, 7]]))
        )
