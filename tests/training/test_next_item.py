"""The objective of sequence recommenders, against slow forms that encode every item wherever it stands."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptmrec_dist.config import PackConfig, recommender_config
from ptmrec_dist.config.next_item import NextItemConfig
from ptmrec_dist.config.sequences import SequenceConfig
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.histories import PaddedHistories
from ptmrec_dist.data.packing.pack import pack
from ptmrec_dist.data.sequences import TrainingSequences
from ptmrec_dist.distributed import World, join_world, sum_over_ranks
from ptmrec_dist.errors import UserError
from ptmrec_dist.recommenders import blocks, recommender_class
from ptmrec_dist.recommenders.base import Inputs, Queries
from ptmrec_dist.recommenders.rows import Features
from ptmrec_dist.recommenders.sequences import SequenceRecommender
from ptmrec_dist.training.objectives import sequence
from ptmrec_dist.training.objectives.sequence import NextItem
from ptmrec_dist.training.objectives.sequence_batch import SequenceBatch
from ptmrec_dist.training.sequence_batches import SequenceBatches, require_negatives
from tests.ranks import run_on_ranks
from tests.recommenders.conftest import for_few_items

USERS, ITEMS, LENGTH, SEED, STEP = 9, 12, 4, 3, 7
CASES = {
    "in-batch": NextItemConfig(logq=False),
    "in-batch, logq": NextItemConfig(),
    "in-batch, once": NextItemConfig(duplicates="once", logq=False),
    "in-batch, once, logq": NextItemConfig(duplicates="once"),
    "full": NextItemConfig(loss="full"),
    "bce": NextItemConfig(loss="bce"),
    "gbce": NextItemConfig(loss="gbce", num_negatives=3, calibration=0.5),
    "sampled": NextItemConfig(loss="sampled", num_negatives=3),
}
PMMREC: dict[str, dict[str, Any]] = {"pmmrec": {"fusion_heads": 2, "shuffled": 0.4, "replaced": 0.3}}


@dataclass(frozen=True, kw_only=True)
class SumConfig(SequenceConfig):
    """Hyper-parameters."""


class SumOfModes(SequenceRecommender):
    """Items from their features by a small network, users as a running sum; as wide as it is deep, to be encoded once."""

    multimodal: ClassVar[bool] = True

    def __init__(self, inputs: Inputs, config: SumConfig) -> None:
        super().__init__(inputs, config)
        width = sum(table.shape[1] for table in inputs.features.values())
        self.network = nn.Sequential(nn.Linear(width, 8), nn.Tanh(), nn.Linear(8, config.dim))
        self.encoded: list[int] = []

    def item_vectors(self, features: Features, chosen: Tensor | None = None) -> Tensor:
        rows = torch.cat([features[name] for name in sorted(features)], dim=1)
        self.encoded.append(len(rows))
        vectors: Tensor = self.network(rows)
        return vectors

    def encode(self, items_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        return torch.tanh(items_BLD.cumsum(dim=1))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users with 1 to 9 training items, some of which they take again."""
    folder, rng = tmp_path_factory.mktemp("sequences"), np.random.default_rng(0)
    lengths = [3, 4, 5, 6, 7, 8, 9, 11, 11]
    rows = [(f"u{u}", f"i{rng.integers(ITEMS)}", t) for u, length in enumerate(lengths) for t in range(length)]
    rows += [("all", f"i{item}", item) for item in range(ITEMS)]
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(folder / "a.csv")
    options: Any = {"split": "leave_one_out", "repeats": "keep", "core": 0}
    pack(PackConfig(interactions=folder / "a.csv", out=folder / "packed", **options))
    return folder / "packed"


def _objective(data: Path, config: NextItemConfig, world: World, kind: str = "sasrec", seed: int = SEED) -> NextItem:
    """An objective in float64 with weights that matter; in evaluation mode, for its forms see different dropout."""
    dataset = Dataset(data)
    generator = torch.Generator().manual_seed(0)
    widths = {} if kind in ("sasrec", "gru4rec", "nextitnet") else {"image": 5, "text": 4}
    features = {name: torch.randn(ITEMS, width, generator=generator) for name, width in widths.items()}
    inputs = Inputs(USERS, ITEMS, dataset.interactions("train"), features)
    torch.manual_seed(0)
    model: Any
    if kind == "modes":
        model = SumOfModes(inputs, SumConfig(dim=6, length=LENGTH))
    else:
        small = PMMREC.get(kind, {"experts": 2} if kind == "unisrec" else for_few_items(kind))
        model = recommender_class(kind)(inputs, recommender_config(kind, **{"dim": 6, "length": LENGTH, **small}))
    model.rebuild(features, world)
    double = {name: table.double() for name, table in features.items()}
    objective = NextItem(model, double, False, world, TrainingSequences(dataset, LENGTH), config, seed)
    with torch.no_grad():
        for parameter in objective.double().parameters():
            parameter.normal_(std=0.7, generator=generator)
    objective.eval()
    return objective


def _alone() -> World:
    return World(0, 1, torch.device("cpu"))


def _batch(objective: NextItem, chosen: list[int]) -> SequenceBatch:
    batches = SequenceBatches(objective.sequences, 100, objective.world, objective.config.negatives)
    return batches.batch(np.array(chosen))


def _all(data: Path) -> list[int]:
    return list(range(len(TrainingSequences(Dataset(data), LENGTH).users)))


def _taken(data: Path) -> dict[int, list[int]]:
    train = Dataset(data).sequences("train")
    return {user: train.items[train.users == user].tolist() for user in range(USERS + 1)}


def _windows(data: Path) -> list[tuple[int, list[int]]]:
    """User and items of every sequence: histories are cut from their ends."""
    found = []
    for user, items in _taken(data).items():
        while len(items) > 1:
            found.append((user, items[-LENGTH - 1 :]))
            items = items[:-LENGTH]
    return found


def _gradients(objective: NextItem, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*objective.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return dict(zip(names, found, strict=True))


def _slot_by_slot(objective: NextItem, data: Path, chosen: list[int]) -> Tensor:
    """The mean loss over all positions, each item encoded in every slot, each term written out."""
    model, config, taken = objective.recommender, objective.config, _taken(data)
    shown = [item for _, window in _windows(data) for item in window]  # what a share p is a share of
    windows = [_windows(data)[number] for number in chosen]
    slots = [item for _, window in windows for item in window]

    def encoded(items: list[int]) -> Tensor:
        rows = torch.tensor(items)
        return model.item_vectors({name: table[rows] for name, table in objective.features.items()}, rows)

    def scores(state: Tensor, items: list[int]) -> Tensor:
        return model.score(state[None], model.candidates(encoded(items)))[0]

    def log_q(item: int) -> float:
        share = shown.count(item) / len(shown)
        if not config.logq:
            return 0.0
        return math.log(share if config.duplicates == "count" else 1 - (1 - share) ** len(slots))

    losses = []
    for user, window in windows:
        read, wanted = window[:-1], window[1:]
        vectors = torch.nn.functional.pad(encoded(read), (0, 0, LENGTH - len(read), 0))[None]
        states = model.states(vectors, torch.arange(LENGTH)[None] >= LENGTH - len(read))[0, LENGTH - len(read) :]
        for position, (state, target) in enumerate(zip(states, wanted, strict=True)):
            own = scores(state, [target])[0]
            if config.loss == "inbatch":
                others = slots if config.duplicates == "count" else sorted(set(slots))
                others = [item for item in others if item not in taken[user]]
                terms = [own - log_q(target)]
                terms += [scores(state, [item])[0] - log_q(item) for item in others]
                losses.append(torch.stack(terms).logsumexp(0) - terms[0])
            elif config.loss == "full":
                losses.append(scores(state, list(range(ITEMS))).logsumexp(0) - own)
            else:
                negatives = _negatives(objective, user, LENGTH - len(read) + position)
                assert not set(negatives) & set(taken[user]) or len(set(taken[user])) == ITEMS
                losses.append(_sampled_loss(config, own, scores(state, negatives)))
    return torch.stack(losses).mean()


def _sampled_loss(config: NextItemConfig, own: Tensor, others: Tensor) -> Tensor:
    if config.loss == "sampled":
        return torch.cat([own[None], others]).logsumexp(0) - own
    rate, t = len(others) / (ITEMS - 1), config.calibration if config.loss == "gbce" else 0.0
    beta = rate * (t * (1 - 1 / rate) + 1 / rate)  # as gSASRec writes it
    return -((torch.sigmoid(own) ** beta).log() + torch.sigmoid(-others).log().sum()) / (1 + len(others))


def _negatives(objective: NextItem, user: int, position: int) -> list[int]:
    """The negatives of one position, sampled by themselves."""
    assert objective.sampler is not None
    users, number = torch.tensor([user]), objective.config.negatives_per_position
    salt = objective.seed * 1_000_003 + STEP
    random = sequence.hashed_choice(users, torch.tensor([position]), torch.tensor(2**62), salt, number)
    return objective.sampler.choose(users[:, None].expand_as(random), random)[0].tolist()


CONTENT = ("fdsa", "carca", "unisrec", "vqrec")
EACH_LOSS = ("in-batch, once, logq", "full", "bce", "gbce", "sampled")


@pytest.mark.parametrize(
    ("case", "kind"),
    [(case, kind) for case in CASES for kind in ("sasrec", "modes")]
    + [(case, kind) for case in EACH_LOSS for kind in (*CONTENT, "pmmrec")],
)
def test_items_encoded_once_give_the_loss_and_the_gradient_of_items_encoded_in_every_slot(
    data: Path, case: str, kind: str
) -> None:
    objective = _objective(data, CASES[case], _alone(), kind)
    chosen = [5, 0, 3, 1, 7, 8]
    assert len(set(objective.sequences.users[chosen])) < len(chosen)  # two of one user
    found = objective(_batch(objective, chosen), STEP)["next_item"]
    expected = _slot_by_slot(objective, data, chosen)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    wanted = _gradients(objective, expected)
    for name, gradient in _gradients(objective, found).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-9, atol=1e-10, msg=f"{case}: {name}")


def test_every_distinct_item_of_a_step_is_encoded_once(data: Path) -> None:
    objective = _objective(data, NextItemConfig(), _alone(), "modes")
    batch = _batch(objective, _all(data))
    objective(batch, STEP)
    assert objective.recommender.encoded == [len(batch.items)]
    assert len(batch.items) == len(set(batch.items.tolist())) < int(batch.counts.sum())


def test_the_binary_loss_is_that_of_each_target_and_its_negative_after_the_history_alone(data: Path) -> None:
    """Of a model whose state is the same wherever a history stands in the window: SASRec's positions count from its end."""
    objective = _objective(data, NextItemConfig(loss="bce"), _alone(), "gru4rec")
    batch = _batch(objective, _all(data))
    expected = []
    for user, items in _windows(data):
        for end in range(1, len(items)):
            padded = torch.tensor([[0] * (LENGTH - end) + items[:end]])
            histories = PaddedHistories(padded, torch.arange(LENGTH)[None] >= LENGTH - end)
            (negative,) = _negatives(objective, user, LENGTH - len(items) + end)
            model = objective.recommender
            tables = model.tables({})
            state = model.users(Queries(torch.tensor([user]), histories), tables)
            (scores,) = model.score(state, model.items({}, tables))
            expected.append(F.softplus(-scores[items[end]]) / 2 + F.softplus(scores[negative]) / 2)
    torch.testing.assert_close(objective(batch, STEP)["next_item"], torch.stack(expected).mean())


@pytest.mark.parametrize("case", ["full", "in-batch, logq"])
def test_many_scores_are_computed_in_blocks_of_the_same_value_and_gradient(
    data: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    objective = _objective(data, CASES[case], _alone())
    batch = _batch(objective, _all(data))
    whole = objective(batch, STEP)["next_item"]
    expected = _gradients(objective, whole)
    monkeypatch.setattr(blocks, "_BLOCK_NUMBERS", 3 * ITEMS)
    found = objective(batch, STEP)["next_item"]
    torch.testing.assert_close(found, whole)
    for name, gradient in _gradients(objective, found).items():
        torch.testing.assert_close(gradient, expected[name])


def test_an_epoch_has_every_sequence_once_in_an_order_of_its_own(data: Path) -> None:
    objective = _objective(data, NextItemConfig(), _alone())
    batches = SequenceBatches(objective.sequences, 8, _alone())
    targets = objective.sequences.num_targets
    assert abs(8 - targets / batches.steps(0)) < 8 / 2
    orders = []
    for epoch in (0, 1):
        steps = list(batches.epoch(epoch, 0, torch.Generator().manual_seed(epoch)))
        assert len(steps) == batches.steps(epoch)
        orders.append([user for (batch,) in steps for user in batch.users.tolist()])
        assert sorted(orders[-1]) == objective.sequences.users.tolist()
        assert sum(len(batch.targets) for (batch,) in steps) == targets
        skipped = [b.users.tolist() for (b,) in batches.epoch(epoch, 2, torch.Generator().manual_seed(epoch))]
        assert skipped == [b.users.tolist() for (b,) in steps[2:]]
    assert orders[0] != orders[1]


def test_batches_without_negatives_are_refused(data: Path) -> None:
    objective = _objective(data, NextItemConfig(), _alone())
    assert objective(_batch(objective, [3]), STEP)["next_item"].item() == 0  # what is refused
    sequences, config = objective.sequences, NextItemConfig()
    per_sequence = sequences.num_targets / len(sequences.users)
    with pytest.raises(UserError, match=r"batch_size: got 1, expected more, such as \d+: a step would have 1 sequence"):
        require_negatives(config, sequences, 1, _alone())
    require_negatives(config, sequences, math.ceil(2 * per_sequence), _alone())
    require_negatives(NextItemConfig(loss="sampled"), sequences, 1, _alone())
    two = World(0, 2, torch.device("cpu"))
    require_negatives(config, sequences, math.ceil(2 * per_sequence), two)
    own = NextItemConfig(negatives="rank")
    with pytest.raises(UserError, match="a rank's step would have 1 sequence"):
        require_negatives(own, sequences, math.ceil(2 * per_sequence), two)
    require_negatives(own, sequences, math.ceil(4 * per_sequence), two)
    sequences.users = np.full_like(sequences.users, 3)
    with pytest.raises(UserError, match="shards: got 'training sequences of 1 user', expected those of 2 or more"):
        require_negatives(config, sequences, 1000, _alone())


def test_dropout_and_negatives_depend_on_seed_and_step_alone(data: Path) -> None:
    objective = _objective(data, CASES["sampled"], _alone())
    other = _objective(data, CASES["sampled"], _alone(), seed=SEED + 1)
    batch = _batch(objective, _all(data))
    objective.train()
    other.train()
    losses = []
    for model, step in ((objective, 1), (objective, 2), (other, 1), (objective, 1)):
        torch.manual_seed(len(losses))
        losses.append(model(batch, step)["next_item"].item())
    assert losses[0] == losses[3]
    assert len(set(losses)) == 3


def test_the_contrast_of_noised_histories_counts_by_its_weight(data: Path) -> None:
    objective = _objective(data, NextItemConfig(), _alone(), "pmmrec")
    assert objective.pretraining is not None
    found = []
    for weight in (1.0, 0.25, 0.0):
        objective.pretraining.config = replace(objective.recommender.config, rcl_weight=weight)
        found.append(objective(_batch(objective, _all(data)), STEP)["rcl"].item())
    assert found == pytest.approx([found[0], found[0] / 4, 0])
    assert found[0] > 0


def _on_rank(data: Path, steps: list[tuple[str, str, list[int]]]) -> list[dict[str, Any]]:
    """Loss and gradients of some steps, as the mean over the ranks, and how many items this rank encoded."""
    world, found = join_world("cpu"), []
    for case, kind, chosen in steps:
        objective = _objective(data, CASES[case], world, kind)
        terms = objective(_batch(objective, chosen), STEP)
        assert terms.keys() == {"next_item"} | ({"contrast", "nid", "rcl"} if kind == "pmmrec" else set())
        values = terms | _gradients(objective, torch.stack(list(terms.values())).sum())
        mean = {name: sum_over_ranks(value) / world.size for name, value in values.items()}
        found.append({"mean": mean, "encoded": getattr(objective.recommender, "encoded", [])})
    return found


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_have_the_loss_and_the_gradient_of_one_process(data: Path, ranks: int, faiss: Any) -> None:
    """Uneven parts, a rank without sequences, items that features give and are encoded on one rank for all."""
    every = _all(data)
    steps = [(case, kind, every) for case in CASES for kind in ("sasrec", "modes")]
    steps += [("in-batch, logq", kind, every[:5]) for kind in ("gru4rec", "nextitnet", "modes")]
    steps += [(case, "modes", every[2:3]) for case in ("in-batch", "sampled")]
    steps += [("in-batch", "pmmrec", some) for some in (every, every[2:3])]
    steps += [(case, "pmmrec", every) for case in ("in-batch, once", "full")]
    steps += [(case, kind, every[:5]) for case in ("in-batch, logq", "full", "gbce") for kind in CONTENT]
    expected = _on_rank(data, steps)
    for on_rank in run_on_ranks(ranks, _on_rank, data, steps):
        for step, found, wanted in zip(steps, on_rank, expected, strict=True):
            for name, value in wanted["mean"].items():
                message = f"{step}: {name}"
                np.testing.assert_allclose(found["mean"][name], value.detach(), rtol=1e-9, atol=1e-10, err_msg=message)
            if step[:2] == ("in-batch", "modes"):
                assert found["encoded"][0] in (wanted["encoded"][0] // ranks, -(-wanted["encoded"][0] // ranks))


def _own_negatives(data: Path, chosen: list[int]) -> tuple[list[int], float]:
    objective = _objective(data, NextItemConfig(negatives="rank"), join_world("cpu"))
    batch = _batch(objective, chosen)
    return batch.items.tolist(), objective(batch, STEP)["next_item"].item()


def test_negatives_may_be_those_of_the_same_rank_alone(data: Path) -> None:
    chosen = _all(data)[:4]
    means = []
    for rank, (items, loss) in enumerate(run_on_ranks(2, _own_negatives, data, chosen)):
        objective = _objective(data, NextItemConfig(), _alone())
        own = _batch(objective, chosen[2 * rank : 2 * rank + 2])
        assert items == own.items.tolist()
        # A rank returns its sum over the positions of both, times the number of ranks.
        means.append(objective(own, STEP)["next_item"].item() * len(own.targets))
        assert loss == pytest.approx(2 * means[-1] / _positions(data, chosen))


def _positions(data: Path, chosen: list[int]) -> int:
    return len(_batch(_objective(data, NextItemConfig(), _alone()), chosen).targets)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "full", "logq": False}, "logq: got False, expected True, or one of --loss inbatch, which read it"),
        ({"loss": "bce", "duplicates": "once"}, "duplicates: got 'once'"),
        ({"num_negatives": 5}, "num_negatives: got 5, expected None, or one of --loss bce, gbce, sampled"),
        ({"loss": "bce", "calibration": 0.5}, r"calibration: got 0\.5"),
        ({"loss": "gbce", "calibration": 1.5}, r"calibration: got 1\.5, expected a number in \[0, 1\]"),
        ({"loss": "bce", "num_negatives": 0}, "num_negatives: got 0, expected 1 or more"),
    ],
)
def test_settings_that_the_loss_does_not_read_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        NextItemConfig(**settings)
