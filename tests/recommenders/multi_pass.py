"""Dense, slow references for what SLMRec and MMGCL have in common: one pass after the other."""

import torch
from torch import Tensor

from ptmrec_dist.recommenders.general.multi_pass import MultiPassRecommender
from tests.recommenders.conftest import Toy


def layer_0(model: MultiPassRecommender, toy: Toy) -> list[Tensor]:
    """Items that each pass starts from, that of IDs first."""
    contents = [
        toy.features[modality] @ model.maps[modality].weight.T + model.maps[modality].bias
        for modality in model.modalities
    ]
    return [model.item_embeddings.weight, *contents]


def dense_pass(model: MultiPassRecommender, adjacency: Tensor, items: Tensor) -> Tensor:
    """The mean of all layers, users before items; users always start from their embeddings."""
    layers = [torch.cat([model.user_embeddings.weight, items])]
    for _ in range(model.layers):
        layers.append(adjacency @ layers[-1])
    return torch.stack(layers).mean(dim=0)


def read_out(model: MultiPassRecommender, toy: Toy, passes: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Vectors f of users and items."""
    users, items = torch.cat(passes, dim=1).split([toy.num_users, toy.num_items])
    return (
        users @ model.user_readout.weight.T + model.user_readout.bias,
        items @ model.item_readout.weight.T + model.item_readout.bias,
    )


def dense_vectors(model: MultiPassRecommender, toy: Toy) -> tuple[Tensor, Tensor]:
    """Vectors f of users and items over the whole graph."""
    return read_out(model, toy, [dense_pass(model, toy.adjacency(), items) for items in layer_0(model, toy)])


def dense_id_vectors(model: MultiPassRecommender, toy: Toy) -> tuple[Tensor, Tensor]:
    """Vectors f of users and items in which the modalities are zero."""
    ids, *contents = [dense_pass(model, toy.adjacency(), items) for items in layer_0(model, toy)]
    return read_out(model, toy, [ids, *(torch.zeros_like(table) for table in contents)])
