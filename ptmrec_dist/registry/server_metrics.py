"""What `/metrics` of a server tells Prometheus: requests, input, scores, and how far they drifted from training.

Over several worker processes the counts are sums, by way of files in a folder that the environment names; drift is that of the
worker that answered last.
"""

import os
from collections import Counter as Tally
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from ptmrec_dist.serving import ServedModel
from ptmrec_dist.serving.drift import BEST_SCORE, IMAGE_SIDE, DriftWindow
from ptmrec_dist.serving.params import Params
from ptmrec_dist.serving.users import Requesters

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_PIXELS = (32, 64, 128, 224, 336, 512, 1024, 2048)


class ServerMetrics:
    """Counts what a server answers; it observes a model.

    Args:
        model: The model.
        described: Name, version and run of the model.
    """

    def __init__(self, model: ServedModel, described: Mapping[str, str]) -> None:
        self._registry = registry = CollectorRegistry()
        info = Gauge(
            "ptmrec_model_info",
            "The served model",
            ["name", "version", "run"],
            registry=registry,
            multiprocess_mode="max",
        )
        info.labels(*(described[name] for name in ("name", "version", "run"))).set(1)
        self._responses = Counter("ptmrec_responses", "Responses by status", ["status"], registry=registry)
        self._seconds = Histogram(
            "ptmrec_response_seconds", "Time to answer a request", registry=registry, buckets=_SECONDS
        )
        self._rows = Counter(
            "ptmrec_rows",
            "Rows of requests, by who they are: user, visitor or unknown user",
            ["kind"],
            registry=registry,
        )
        self._history_items = Counter("ptmrec_history_items", "Items of visitors' histories", registry=registry)
        self._unknown_items = Counter(
            "ptmrec_unknown_history_items", "Items of histories that the model does not know", registry=registry
        )
        self._new_items = Counter("ptmrec_new_item_scores", "Rows that scored a new item", registry=registry)
        self._sides = Histogram(
            "ptmrec_image_shorter_side_pixels", "Images of new items", registry=registry, buckets=_PIXELS
        )
        self._scores = self._score_histogram(model)
        self._windows = {name: DriftWindow(baseline) for name, baseline in model.baselines.items()}
        self._drift = Gauge(
            "ptmrec_drift_psi",
            "Population stability index of the latest values against training",
            ["of"],
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        for name in self._windows:
            self._drift.labels(name)  # 0 until something is known
        model.observe(self)

    def answered(self, requesters: Requesters, params: Params, answer: Mapping[str, Sequence[Any]]) -> None:
        """Count users, visitors and unknown ids, and the best score of each list that the full score ranks."""
        visitors = (name is None for name in requesters.names)
        kinds = (
            "user" if known else "visitor" if visitor else "unknown"
            for known, visitor in zip(requesters.known, visitors)
        )
        for kind, count in Tally(kinds).items():
            self._rows.labels(kind).inc(count)
        visiting = np.array([name is None for name in requesters.names], dtype=bool)
        unknown = sum(map(len, requesters.unknown_items))
        self._history_items.inc(int(visiting[requesters.seen.users].sum()) + unknown)
        self._unknown_items.inc(unknown)
        if "rank" not in answer:
            self._new_items.inc(len(answer["row"]))
        elif self._scores is not None and params.candidates == "warm":
            best = {row: score for row, rank, score in zip(answer["row"], answer["rank"], answer["score"]) if rank == 1}
            for score in best.values():
                self._scores.observe(score)
            if not (params.filters or params.exclude):  # as in training: of users, and of all items
                self._compare(BEST_SCORE, [score for row, score in best.items() if requesters.known[row]])

    def read_image(self, width: int, height: int) -> None:
        """Count an image of a new item by its shorter side."""
        self._sides.observe(min(width, height))
        self._compare(IMAGE_SIDE, [min(width, height)])

    def _compare(self, name: str, values: Sequence[float]) -> None:
        """Note values whose drift is measured, where the model knows how they were distributed in training."""
        window = self._windows.get(name)
        if window is not None:
            self._drift.labels(name).set(window.add(values))

    def responded(self, status: int, seconds: float) -> None:
        """Count a response to `/invocations`.

        Args:
            status: HTTP status.
            seconds: Time that it took.
        """
        self._responses.labels(str(status)).inc()
        self._seconds.observe(seconds)

    def page(self) -> bytes:
        """Write all metrics in the format that Prometheus reads.

        Returns:
            The text.
        """
        registry = self._registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)

    def _score_histogram(self, model: ServedModel) -> Histogram | None:
        """Buckets between deciles of the training users' best scores: without drift each gets a tenth of the lists."""
        baseline = model.baselines.get(BEST_SCORE)
        if baseline is None:
            return None
        text = "Best score of each list, in buckets that hold a tenth of the training users each"
        return Histogram("ptmrec_best_score", text, registry=self._registry, buckets=baseline.edges)
