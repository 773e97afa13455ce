"""Embedding tables cut by rows: each of several ranks owns consecutive rows, and fetches those of others that it reads.

A step sends the distinct rows of a rank's batch to that rank, and their gradients back to the owners. Each owner's Adam
moves all of its rows in every step, as that of one process does: on the same batches the tables are those of one process.
Weights, gradient and moments take 16 D N / W bytes a rank, and a step sends 8 + 8 D for each row that is fetched. No rank
ever holds a table whole: initial values are sampled, and files written, block by block.

Legend: N rows of a table, R those of this rank, S of a block, D width, W ranks.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from ptmrec_dist.distributed.collectives import fetch_rows, gather_rows, sum_over_ranks
from ptmrec_dist.distributed.engine import AVERAGE, MOMENTS, OneProcess, TensorReader, gradient_norm, moments_of
from ptmrec_dist.distributed.tensor_file import Piece, pieces_of
from ptmrec_dist.distributed.world import World

_BLOCK = 2**14  # rows


class RowTable(nn.Embedding):
    """An embedding table of which this rank owns some rows: `weight` [R, D] has these alone, `own` says which they are.

    Collective: every rank must call it.

    Args:
        rows: Rows of the whole table N.
        dim: Width of a row D.
        world: The ranks that own the rows.
    """

    def __init__(self, rows: int, dim: int, world: World) -> None:
        self.world, self.own = world, own_rows(rows, world)
        own = self.own.stop - self.own.start
        super().__init__(own, dim, _weight=torch.empty(own, dim))
        self.num_embeddings = rows
        self.most = -(-rows // world.size)  # rows that any rank owns

    def initialise(self, fill: Callable[[Tensor], object]) -> None:
        """Fill the table with the numbers that `fill` would sample for the whole table at once.

        Args:
            fill: Fills a tensor in place from torch's global generator, in the order of its elements.
        """
        own_RD, own = self.weight.detach(), self.own
        for first, end in _blocks(self.num_embeddings):
            block_SD = torch.empty(end - first, self.embedding_dim)
            fill(block_SD)
            start, stop = max(first, own.start), min(end, own.stop)
            if start < stop:
                own_RD[start - own.start : stop - own.start] = block_SD[start - first : stop - first]

    def forward(self, input: Tensor) -> Tensor:
        """Look rows up, those of other ranks included; each distinct one is sent once.

        Args:
            input: Rows of the whole table, int64, any shape; a rank may look up none.

        Returns:
            Their values, the same shape and [D].
        """
        distinct_S, places = input.unique(return_inverse=True)
        return F.embedding(places, fetch_rows(self.weight, distinct_S))

    def piece(self, name: str, own_RD: Tensor) -> Piece:
        """Describe a tensor that is divided over the ranks as the table is.

        Args:
            name: Its name in a file.
            own_RD: This rank's rows of it [R, D].

        Returns:
            The piece. Collective: its blocks are put together on the first rank and empty on others.
        """
        shape = (self.num_embeddings, self.embedding_dim)
        return Piece(name, shape, own_RD.dtype, partial(self._gathered, own_RD.detach()))

    def _gathered(self, own_RD: Tensor) -> Iterator[Tensor]:
        for first, end in _blocks(self.num_embeddings):
            yield fetch_rows(own_RD, torch.arange(first, end if self.world.is_first else first, device=own_RD.device))


class OwnRows:
    """An open file of tensors, of which this rank reads its own rows of tables.

    Args:
        whole: The file.
        tables: Names in it to the tables that these tensors are cut as.
    """

    def __init__(self, whole: TensorReader, tables: Mapping[str, RowTable]) -> None:
        self._whole, self._tables = whole, tables

    def keys(self) -> list[str]:
        """Return the names of its tensors."""
        return self._whole.keys()

    def get_tensor(self, name: str) -> Tensor:
        """Read one tensor to the CPU; pages of the file that hold other rows are not touched."""
        tensor = self._whole.get_tensor(name)
        return tensor[self._tables[name].own] if name in self._tables else tensor


class RowEngine(OneProcess):
    """The engine of several ranks whose large tables are cut by rows: each rank moves its own.

    All other parameters are whole on every rank, and get the sum of the gradients of all.

    Collective: every rank must call every method.

    Args:
        module: What is called and trained; the weights of its `RowTable`s are cut.
        optimizer: Its Adam or AdamW.
        world: The ranks that own the rows.
        grad_clip: Largest norm of the gradient; 0 turns clipping off.
    """

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, world: World, grad_clip: float = 0.0
    ) -> None:
        super().__init__(module, optimizer, grad_clip)
        self._world, weights = world, row_tables(module)
        alike = {f"{name}.{key}": table for name, table in weights.items() for key in (*MOMENTS, AVERAGE)}
        self._tables = weights | alike
        cut = {id(table.weight) for table in weights.values()}
        self._cut = [parameter for parameter in module.parameters() if id(parameter) in cut]
        self._whole = [parameter for parameter in module.parameters() if id(parameter) not in cut]

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of a micro-batch; owners receive the sum over the ranks, of which the step takes the mean."""
        super().backward(loss / self._world.size, last=last)
        for parameter in self._whole if last else ():
            if parameter.grad is not None:
                parameter.grad = sum_over_ranks(parameter.grad)

    def _computed_norm(self) -> Tensor:
        """Of the gradients of all ranks together."""
        norms_W = gather_rows(gradient_norm(self._cut).reshape(1), 1)
        return get_total_norm([norms_W, gradient_norm(self._whole)])

    def state(self, trained: Mapping[str, Tensor]) -> dict[str, list[Piece]]:
        """Describe weights and moments, whole."""
        tensors = {"weights": trained, "optimizer": moments_of(self.optimizer, trained)}
        return {kind: whole_pieces(own, self._tables) for kind, own in tensors.items()}

    def load_state(self, trained: Mapping[str, Tensor], weights: TensorReader, optimizer: TensorReader) -> None:
        """Load this rank's rows of weights and moments."""
        super().load_state(trained, OwnRows(weights, self._tables), OwnRows(optimizer, self._tables))


def own_rows(rows: int, owners: World | None) -> slice:
    """Say which rows of a table this rank owns.

    Args:
        rows: Rows of the whole table N.
        owners: Ranks that it is cut over; None if this process holds it whole.

    Returns:
        The rows, consecutive; ranks differ by one at most.
    """
    if owners is None:
        return slice(0, rows)
    return slice(*(rows * rank // owners.size for rank in (owners.rank, owners.rank + 1)))


def row_tables(module: nn.Module) -> dict[str, RowTable]:
    """Find the tables of a module that are cut by rows.

    Args:
        module: Any module.

    Returns:
        Name of each one's weight in the state dict to the table.
    """
    return {f"{name}.weight": part for name, part in module.named_modules() if isinstance(part, RowTable)}


def whole_pieces(tensors: Mapping[str, Tensor], tables: Mapping[str, RowTable]) -> list[Piece]:
    """Describe tensors, whole, of some of which each rank has its rows.

    Args:
        tensors: Name to tensor.
        tables: Names among them to the tables that these tensors are cut as.

    Returns:
        The pieces; collective where a tensor is cut.
    """
    cut = [table.piece(name, tensors[name]) for name, table in tables.items() if name in tensors]
    return cut + pieces_of({name: tensor for name, tensor in tensors.items() if name not in tables})


def _blocks(rows: int) -> Iterator[tuple[int, int]]:
    """First row of each block and one past its last: 16,384 rows, up to twice as many in the last one.

    Generators sample numbers in groups of 16: all blocks but the last are a multiple, and the last is no shorter.
    """
    return pairwise([*range(0, max(1, rows // _BLOCK) * _BLOCK, _BLOCK), rows])
