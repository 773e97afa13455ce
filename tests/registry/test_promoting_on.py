"""`promote --on SHARDS`: versions of different data on interactions that neither was trained on, against a slow reference."""

import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ptmrec_dist.cli import main
from ptmrec_dist.config import PackConfig, RegisterConfig, Stage1Config
from ptmrec_dist.config.recommenders import BPRConfig
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.packing.pack import pack
from ptmrec_dist.registry.held_out import compare_on
from ptmrec_dist.registry.loading import verified_files
from ptmrec_dist.registry.registering import register
from ptmrec_dist.serving.fold_in import PRIOR
from ptmrec_dist.training.finished_run import FinishedRun, load_run
from ptmrec_dist.training.records import RECOMMENDER_FILE, read_record, write_record
from ptmrec_dist.training.stage1 import train_stage1
from tests.registry.commands import refusal
from tests.registry.films import OFF, Catalogue
from tests.vectors import all_vectors

NEWCOMER, GONE, UNKNOWN = "newcomer", "3", "unknown"
"""Users whom only the later version knows, only the earlier one, and neither."""


def packed(folder: Path, pairs: list[tuple[str, str]]) -> Path:
    folder.mkdir()
    lines = [f"{user},{item}" for user, item in pairs]
    (folder / "interactions.csv").write_text("\n".join(["user_id,item_id", *lines]))
    out = folder / "shards"
    pack(PackConfig(interactions=folder / "interactions.csv", out=out, split="random", core=0, workers=1))
    return out


def pairs_of(dataset: Dataset, *parts: str) -> set[tuple[str, str]]:
    taken = [dataset.interactions(part) for part in parts]
    return {
        (dataset.user_ids[user], dataset.item_ids[item])
        for part in taken
        for user, item in zip(part.users, part.items, strict=True)
    }


@pytest.fixture(scope="module")
def later(catalogue: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ID-only run on later data: one user has come, one is gone."""
    root = tmp_path_factory.mktemp("later")
    before = pairs_of(Dataset(catalogue.shards), "train", "validation", "test")
    pairs = [pair for pair in sorted(before) if pair[0] != GONE] + [(NEWCOMER, str(item)) for item in range(4, 20)]
    shards = packed(root / "data", pairs)
    train_stage1(
        Stage1Config(
            out=root / "run",
            shards=shards,
            recommender="bpr",
            model=BPRConfig(dim=8),
            epochs=0,
            device="cpu",
            tracking=OFF,
        )
    )
    return root / "run"


@pytest.fixture(scope="module")
def newest(catalogue: Catalogue, later: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Newer interactions: of all kinds of users, some with an unknown item, some that were there before."""
    old = sorted(pairs_of(load_run(later).dataset, "train"))[:7]
    pairs = [(user, str(item)) for user in ("0", "1", NEWCOMER, GONE, UNKNOWN) for item in range(0, 24, 2)]
    pairs += [*old, ("0", "new-film"), (UNKNOWN, "new-film")]
    return packed(tmp_path_factory.mktemp("newest") / "data", list(dict.fromkeys(pairs)))


class Reference:
    """A version's answers, one dot product at a time."""

    def __init__(self, run: FinishedRun, tables: dict[str, torch.Tensor]) -> None:
        dataset = run.dataset
        self.users, self.items = dataset.user_ids, dataset.item_ids
        self.user_vectors, self.item_vectors = all_vectors(run.recommender, run.features, dataset.num_users)
        self.seen = pairs_of(dataset, "train")
        cold = {index for part in ("cold_validation", "cold_test") for index in dataset.cold_items(part)}
        self.warm = {item for index, item in enumerate(self.items) if index not in cold}
        self.tables = tables

    def vector(self, user: str, taken: set[str]) -> torch.Tensor:
        if user in self.users:
            return self.user_vectors[self.users.index(user)]
        look = torch.zeros(self.item_vectors.shape[1])
        known = taken & self.warm
        for item in known:
            look += self.item_vectors[self.items.index(item)] - self.tables["fold_in.centre"]
        vector = look / (len(known) + PRIOR) @ self.tables["fold_in.weight"] + self.tables["fold_in.bias"]
        return vector[: self.user_vectors.shape[1]]

    def ndcg_at_10(self, user: str, wanted: set[str], candidates: set[str], taken: set[str]) -> float:
        vector = self.vector(user, taken)
        scores = {item: float(vector @ self.item_vectors[self.items.index(item)]) for item in candidates - taken}
        ranked = sorted(scores, key=lambda item: -scores[item])[:10]
        gain = sum(1 / math.log2(rank + 1) for rank, item in enumerate(ranked, 1) if item in wanted)
        return gain / sum(1 / math.log2(rank + 1) for rank in range(1, min(len(wanted), 10) + 1))


def served(run: Path, name: str, **settings) -> str:
    register(RegisterConfig(run=run, name=name, **settings))
    return name


@torch.no_grad()
def test_both_are_scored_on_what_neither_was_trained_on_as_one_by_one(catalogue, later, newest, registered):
    served(catalogue.ids_only, "scored", alias="earlier")
    served(later, "scored", alias="later")
    dataset = Dataset(newest)
    with verified_files("models:/scored@later") as ours, verified_files("models:/scored@earlier") as theirs:
        folders = [files / "artifacts" / "model" for files in (ours, theirs)]
        found = compare_on(dataset, *folders)
        tables = [load_file(folder / "tables.safetensors") for folder in folders]
    runs = [load_run(later), load_run(catalogue.ids_only)]
    references = [Reference(run, table) for run, table in zip(runs, tables, strict=True)]
    everything = pairs_of(dataset, *dataset.parts)
    seen = references[0].seen | references[1].seen
    candidates = references[0].warm & references[1].warm
    held = {pair for pair in everything - seen if pair[1] in candidates}
    unknown = {pair for pair in everything - seen if any(pair[1] not in one.items for one in references)}
    assert ("0", "new-film") in unknown
    for table, reference in zip((found.ours, found.theirs), references, strict=True):
        assert set(table["part"]) == {"held_out"}
        assert set(table["user_id"]) == {user for user, _ in held} >= {NEWCOMER, GONE, UNKNOWN}
        for user, value in table.select("user_id", "ndcg@10").iter_rows():
            wanted, taken = ({item for who, item in pairs if who == user} for pairs in (held, seen))
            assert value == pytest.approx(reference.ndcg_at_10(user, wanted, candidates, taken), abs=1e-6)
    others = len(everything - seen) - len(held) - len(unknown)
    assert re.search(
        rf"^{len(everything)} interactions of .*: {len(held)} held out, {len(everything & seen)} that a version was trained "
        rf"on, {len(unknown)} with items that a version does not know, {others} with items that only one",
        found.account,
    )
    assert "5 users, 2 known to both versions, 2 to one, 1 to neither" in found.account


@pytest.mark.slow
def test_a_version_of_newer_data_is_promoted_if_it_is_better_there(
    catalogue, later, newest, registered, tmp_path, capsys
):
    served(catalogue.ids_only, "newer", alias="champion")
    served(later, "newer")
    assert "on interactions that neither was trained on by --on SHARDS" in refusal(capsys, "promote", "--name", "newer")
    line = refusal(capsys, "promote", "--name", "newer", "--on", str(newest), "--metric", "ndcg@10", "--margin", "0.9")
    assert re.search(
        r"not promoted: held_out ndcg@10 0\.\d+ against .* over 5 users.* held out, .*; expected a p of", line
    )
    register(RegisterConfig(run=clairvoyant(later, newest, tmp_path / "run"), name="newer"))
    assert main(["promote", "--name", "newer", "--on", str(newest), "--metric", "ndcg@10"]) == 0
    assert "held_out ndcg@10 1.0000 against the champion's" in capsys.readouterr().out
    assert registered.get_model_version_by_alias("newer", "champion").version == 3
    assert "got validation recall@20, expected one of held_out" in refusal(
        capsys, "promote", "--name", "newer", "--version", "1", "--on", str(newest), "--part", "validation"
    )


def clairvoyant(run: Path, newest: Path, out: Path) -> Path:
    """A run on the same data that ranks first what users take in the newest data."""
    start, wanted = load_run(run), pairs_of(Dataset(newest), *Dataset(newest).parts)
    width = start.dataset.num_items
    train_stage1(
        Stage1Config(
            out=out,
            shards=start.dataset.folder,
            recommender="bpr",
            model=BPRConfig(dim=width),
            epochs=0,
            device="cpu",
            tracking=OFF,
        )
    )
    record = read_record(out)
    likes = [[float((user, item) in wanted) for item in start.dataset.item_ids] for user in start.dataset.user_ids]
    save_file(
        {"user_embeddings.weight": torch.tensor(likes), "item_embeddings.weight": torch.eye(width)},
        out / RECOMMENDER_FILE,
    )
    write_record(out, record)
    return out


def test_a_set_that_leaves_nothing_is_refused_in_one_line(catalogue, later, registered, capsys, tmp_path):
    served(catalogue.ids_only, "nothing", alias="champion")
    served(later, "nothing")
    trained = sorted(pairs_of(load_run(later).dataset, "train"))
    shards = packed(tmp_path / "data", trained)
    line = refusal(capsys, "promote", "--name", "nothing", "--on", str(shards))
    assert f"on: nothing is left of {len(trained)} interactions of " in line
    assert f": 0 held out, {len(trained)} that a version was trained on, 0 with" in line
    line = refusal(capsys, "promote", "--name", "nothing", "--on", str(tmp_path / "absent"))
    assert f"error: on: no files at {tmp_path / 'absent'}; expected" in line


@torch.no_grad()
def test_new_items_that_both_know_are_ranked_among_themselves(catalogue, newest, registered):
    served(catalogue.stage1, "new-items", alias="a")
    with verified_files("models:/new-items@a") as files:
        folder = files / "artifacts" / "model"
        found = compare_on(Dataset(newest), folder, folder)
    cold = {
        Dataset(catalogue.shards).item_ids[index]
        for part in ("cold_validation", "cold_test")
        for index in (Dataset(catalogue.shards).cold_items(part))
    }
    dataset = Dataset(newest)
    wanted = {user for user, item in pairs_of(dataset, *dataset.parts) if item in cold}
    rows = found.ours.filter(part="cold_held_out")
    assert set(rows["user_id"]) == wanted
    assert rows["recall@10"].to_list() == [1.0] * len(wanted)  # fewer than ten of them
    assert found.ours.equals(found.theirs)
