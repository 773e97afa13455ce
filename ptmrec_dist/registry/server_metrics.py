"""What `/metrics` of a server tells Prometheus: requests, input, and scores beside those of the training data.

Over several worker processes the counts are sums, by way of files in a folder that the environment names.
"""

import os
from collections import Counter as Tally
from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from ptmrec_dist.serving import ServedModel
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
        self._unknown_items = Counter(
            "ptmrec_unknown_history_items", "Items of histories that the model does not know", registry=registry
        )
        self._new_items = Counter("ptmrec_new_item_scores", "Rows that scored a new item", registry=registry)
        self._sides = Histogram(
            "ptmrec_image_shorter_side_pixels", "Images of new items", registry=registry, buckets=_PIXELS
        )
        self._scores = self._score_histogram(model)
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
        self._unknown_items.inc(sum(map(len, requesters.unknown_items)))
        if "rank" not in answer:
            self._new_items.inc(len(answer["row"]))
        elif self._scores is not None and params.candidates == "warm":
            for rank, score in zip(answer["rank"], answer["score"]):
                if rank == 1:
                    self._scores.observe(score)

    def read_image(self, width: int, height: int) -> None:
        """Count an image of a new item by its shorter side."""
        self._sides.observe(min(width, height))

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
        deciles = list(dict.fromkeys(model.best_scores[1:-1]))
        if not deciles:
            return None
        text = "Best score of each list, in buckets that hold a tenth of the training users each"
        return Histogram("ptmrec_best_score", text, registry=self._registry, buckets=deciles)
