"""`ptmrec evaluate`: the metrics of a finished run, computed again, those of popularity, and what its lists are like."""

import json

import numpy as np

from ptmrec_dist.config import EvaluateConfig
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.distributed import join_world
from ptmrec_dist.evaluation.beyond import group_recalls, list_properties
from ptmrec_dist.evaluation.ranking import metrics_of
from ptmrec_dist.evaluation.scoring import top_items
from ptmrec_dist.files import write_atomically
from ptmrec_dist.recommenders.base import Recommender
from ptmrec_dist.recommenders.rows import Features
from ptmrec_dist.training.cold_start import cold_start
from ptmrec_dist.training.evaluator import Evaluator, Masking, Metrics, evaluate_phases, masking_of
from ptmrec_dist.training.finished_run import load_run
from ptmrec_dist.training.popularity import PopularityEvaluator
from ptmrec_dist.training.printing import print_beyond, print_cold_start, print_comparison, print_metrics, stages_of

COLD_START_FILE = "cold_start.json"
POPULARITY_FILE = "popularity.json"
LIST_LENGTH = 20
"""Items of the lists that are measured besides their accuracy."""


def evaluate_run(config: EvaluateConfig) -> None:
    """Evaluate a finished run and write its `metrics.json` anew (`ptmrec evaluate`).

    Collective: every rank must call this.

    Args:
        config: Settings.

    Raises:
        UserError: No finished run, or data or features that are not those it was made from; cold start on interactions without
            times, or without a cold item.
    """
    run = load_run(config.run, config)
    world = join_world(config.device)
    recommender = run.recommender.to(world.device)
    features = {modality: table.to(world.device) for modality, table in run.features.items()}
    masking = masking_of(run.record)
    cold = {}
    if config.cold_below is not None:
        cold = cold_start(run.dataset, recommender, features, config.cold_below, masking.history)
    metrics = evaluate_phases(run.dataset, recommender, features, world, masking)
    popularity = evaluate_phases(run.dataset, recommender, features, world, masking, PopularityEvaluator)
    if world.is_first:
        write_atomically(config.run / "metrics.json", json.dumps(metrics, indent=1))
        print_metrics(metrics)
        write_atomically(config.run / POPULARITY_FILE, json.dumps(popularity, indent=1))
        print_metrics(popularity, "ranking items by number of training interactions")
        if cold:
            write_atomically(config.run / COLD_START_FILE, json.dumps({"below": config.cold_below, **cold}, indent=1))
            print_cold_start(cold)
        phase = "test" if "test" in run.dataset.parts else "validation"
        beyond = beyond_accuracy(run.dataset, phase, recommender, features, masking)
        write_atomically(config.run / "beyond.json", json.dumps(beyond, indent=1))
        print_beyond(beyond)
        if run.record.stage2 is not None:
            print_comparison(stages_of(config.run, run.record))


def beyond_accuracy(
    dataset: Dataset, phase: str, recommender: Recommender, features: Features, masking: Masking
) -> Metrics:
    """Measure lists of recommendations besides their accuracy.

    Args:
        dataset: The packed data set.
        phase: `validation` or `test`.
        recommender: The model.
        features: Features of all items, on the model's device.
        masking: Items that are left out of the ranking.

    Returns:
        Part to the properties of `evaluation.beyond`.
    """
    evaluator = Evaluator(dataset, phase, masking)
    train, found = dataset.interactions("train"), evaluator.ranked(recommender, features)
    tables = {modality: features[modality].cpu().numpy() for modality in recommender.modalities}
    recommender.eval()
    properties: Metrics = {}
    for part, task in evaluator.tasks(recommender, features).items():
        per_user = metrics_of(found[part])
        lists_UK, _ = top_items(task.scorer, per_user.users, task.seen, LIST_LENGTH, task.candidates)
        candidates = np.arange(dataset.num_items) if task.candidates is None else task.candidates
        properties[part] = {
            **list_properties(lists_UK.cpu().numpy(), candidates, train, dataset.num_items, tables),
            **group_recalls(found[part], per_user, train, dataset.num_users, dataset.num_items, LIST_LENGTH),
        }
    return properties
