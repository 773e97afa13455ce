"""Evaluation over ranks: every user exactly once, sums and counts added before they are divided."""

import pytest

from ptmrec_dist.distributed import join_world
from ptmrec_dist.evaluation import tasks
from ptmrec_dist.training.evaluator import Evaluator, Metrics
from ptmrec_dist.training.finished_run import load_run
from tests.conftest import Project
from tests.ranks import run_on_ranks


def _evaluated(project: Project) -> tuple[Metrics, list[tuple[int, int]]]:
    run, world = load_run(project.stage1), join_world("cpu")
    shares: list[tuple[int, int]] = []
    rank_positives = tasks.rank_positives

    def spy(*inputs: object, user_range: tuple[int, int], **named: object) -> object:
        shares.append(user_range)
        return rank_positives(*inputs, user_range=user_range, **named)  # type: ignore[arg-type]

    tasks.rank_positives = spy  # type: ignore[assignment]
    return Evaluator(run.dataset, "validation")(run.recommender, run.features, world), shares


@pytest.mark.slow
def test_ranks_share_the_users_out_and_agree_with_one_process(tiny_project: Project) -> None:
    expected = run_on_ranks(1, _evaluated, tiny_project)[0][0]
    found = run_on_ranks(3, _evaluated, tiny_project)
    for metrics, shares in found:
        assert metrics.keys() == expected.keys()
        for part, values in expected.items():
            assert metrics[part] == pytest.approx(values, rel=1e-12)
        assert len(shares) == len(expected)
    users = [user for _, shares in found for user in range(*shares[0])]
    assert sorted(users) == list(range(40))
