"""Collectives over the ranks: gather with gradient, sum, mean over the global batch. Everything works with one process too.

One rule holds for every loss: a rank computes the rows of its own users against the items of all ranks, and the result
is a mean over the rows of all ranks. `gather_rows` and `mean_over_ranks` keep its gradient exact, so that nothing else in the
project multiplies by the world size.

Legend: B local batch, S rows that a rank contributes to a gather or sends in an exchange, G gathered batch (W * S), R local
rows, W ranks, X trailing dimensions.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from ptmrec_dist.distributed.world import World
from ptmrec_dist.errors import UserError


def barrier() -> None:
    """Wait for every rank.

    Collective: every rank must call this.
    """
    if dist.is_initialized():
        dist.barrier()


def gather_rows(rows_BD: Tensor, size: int | None = None, filler: int = 0) -> Tensor:
    """Gather every rank's rows, in rank order, with gradient.

    Ranks may have different numbers of rows, also none. With `size` each rank's rows are padded to it: shapes are known
    beforehand, and no counts are exchanged; without it counts are exchanged first and nothing is padded. The backward pass
    sums the gradients of this rank's rows over all ranks.

    Collective: every rank must call this, with the same size, trailing shape and dtype.

    Args:
        rows_BD: This rank's rows [B, ...].
        size: Rows that each rank contributes S, at least B; by default as many as it has.
        filler: Value of the padding rows.

    Returns:
        [W * S, ...], or [G, ...] without `size`; the same on every rank.
    """
    alone = not dist.is_initialized() or dist.get_world_size() == 1
    if size is not None:
        filled_SD = torch.cat([rows_BD, rows_BD.new_full((size - len(rows_BD), *rows_BD.shape[1:]), filler)])
        return filled_SD if alone else _gather_equal(filled_SD)
    if alone:
        return rows_BD
    counts = _gather_equal(torch.tensor([len(rows_BD)], device=rows_BD.device)).tolist()
    padded = gather_rows(rows_BD, max(counts)).unflatten(0, (len(counts), max(counts)))
    return torch.cat([rows[:count] for rows, count in zip(padded, counts, strict=True)])


def fetch_rows(rows_BX: Tensor, wanted_R: Tensor) -> Tensor:
    """Fetch rows of any ranks, with gradient; only those that are wanted are sent.

    The backward pass sends the gradient of each row back to its rank, which sums them.

    Collective: every rank must call this, with the same trailing shape and dtype.

    Args:
        rows_BX: This rank's rows [B, ...].
        wanted_R: Positions among the rows of all ranks in rank order, int64 [R]; a rank may want none.

    Returns:
        The wanted rows, [R, ...].
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows_BX[wanted_R]
    counts_W = _gather_equal(torch.tensor([len(rows_BX)], device=rows_BX.device))
    ends_W = counts_W.cumsum(0)
    owner_R = torch.searchsorted(ends_W, wanted_R, right=True)
    order_R = owner_R.argsort(stable=True)
    asked_W = owner_R.bincount(minlength=len(counts_W))
    served_W = torch.empty_like(asked_W)
    dist.all_to_all_single(served_W, asked_W)
    asked, served = asked_W.tolist(), served_W.tolist()
    first = ends_W[dist.get_rank()] - len(rows_BX)
    positions_S = _exchange(wanted_R[order_R], asked, served) - first
    return _exchange(rows_BX[positions_S], served, asked)[order_R.argsort()]


def mean_over_ranks(rows_R: Tensor, weights_R: Tensor | None = None) -> Tensor:
    """Average over the rows of all ranks, such that averaged gradients (as DDP and ZeRO make them) are exact.

    Each rank returns W / N times the sum of its own rows, N the weight of all rows and W the world size: the mean over
    ranks of these values, and of their gradients, is the mean over all rows, however unevenly they are distributed.

    Collective: every rank must call this.

    Args:
        rows_R: This rank's rows [R]; may be empty.
        weights_R: Weight of each row [R]; 1 by default.

    Returns:
        Scalar whose mean over the ranks is the global mean; 0 where no rank has a row.
    """
    total = rows_R.new_full((1,), float(len(rows_R))) if weights_R is None else weights_R.sum().reshape(1)
    size = 1
    if dist.is_initialized():
        dist.all_reduce(total)
        size = dist.get_world_size()
    own = rows_R.sum() if weights_R is None else (rows_R * weights_R).sum()
    return own * (size / total.clamp(min=1e-12)).squeeze(0)


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum a tensor over the ranks, without gradient.

    Collective: every rank must call this, with the same shape.

    Args:
        values: Any tensor.

    Returns:
        The sum, the same on every rank.
    """
    total = values.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(total)
    return total


def require_same_random_numbers(count: int, world: World) -> None:
    """Refuse ranks whose devices generate different random numbers from one seed, as GPUs of different models may.

    Collective: every rank must call this.

    Args:
        count: Most numbers that are generated at once.
        world: This process's rank, the number of ranks and the device.

    Raises:
        UserError: Ranks disagree.
    """
    if world.size == 1:
        return
    # A GPU spreads random numbers over its processors; past a million numbers all of them take part.
    count, generator = min(count, 2**22), torch.Generator(world.device).manual_seed(0)
    order_N = torch.randperm(count, generator=generator, device=world.device)
    uniform_N = torch.rand(count, generator=generator, dtype=torch.float64, device=world.device)
    times_N = torch.empty(count, dtype=torch.float64, device=world.device).exponential_(generator=generator)
    mark = (order_N * (uniform_N.view(torch.int64) ^ times_N.view(torch.int64).roll(1))).sum()
    marks = gather_rows(mark.reshape(1), 1).tolist()
    others = ", ".join(str(rank) for rank, found in enumerate(marks) if found != marks[0])
    if others:
        raise UserError(
            f"device: rank {others} generates other random numbers than rank 0 from the same seed, as GPUs of different models "
            "may; expected devices of one model, choose them or use --device cpu"
        )


def _exchange(rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
    exchanged: Tensor = _ExchangeRows.apply(rows, sent, received)  # type: ignore[no-untyped-call]
    return exchanged


def _gather_equal(rows_SD: Tensor) -> Tensor:
    gathered_GD: Tensor = _GatherRows.apply(rows_SD)  # type: ignore[no-untyped-call]
    return gathered_GD


class _ExchangeRows(torch.autograd.Function):
    """Send consecutive rows to every rank, and receive some from every rank; backward sends gradients back."""

    @staticmethod
    def forward(ctx, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.sent, ctx.received = sent, received
        fresh = rows.new_empty((sum(received), *rows.shape[1:]))
        dist.all_to_all_single(fresh, rows.contiguous(), received, sent)
        return fresh

    @staticmethod
    def backward(ctx, gradients: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def, override]
        return _exchange(gradients, ctx.received, ctx.sent), None, None


class _GatherRows(torch.autograd.Function):
    """Gather tensors of one shape; backward sums over ranks and takes this rank's rows."""

    @staticmethod
    def forward(ctx, rows_SD: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        rows_SD = rows_SD.contiguous()
        rows_GD = rows_SD.new_empty((dist.get_world_size() * len(rows_SD), *rows_SD.shape[1:]))
        dist.all_gather_into_tensor(rows_GD, rows_SD)
        return rows_GD

    @staticmethod
    def backward(ctx, grad_GD: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        grad_SD = grad_GD.new_empty((len(grad_GD) // dist.get_world_size(), *grad_GD.shape[1:]))
        dist.reduce_scatter_tensor(grad_SD, grad_GD.contiguous())
        return grad_SD
