"""Load test of a running server: clients in a closed loop, each with one connection and one request at a time.

    ptmrec serve --model models:/movies@champion --workers 2 &
    python -m benchmarks.load --url http://127.0.0.1:5000 --users 1,2,3 --clients 8 --requests 2000

Prints requests per second, quantiles of the latency, and responses by status; exit code 1 if any was not 200.
"""

import argparse
import http.client
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np

WARM_UP = 20
"""Requests before the measurement."""


@dataclass(frozen=True)
class Load:
    """What was measured."""

    seconds: float
    """Wall time of all requests."""
    latencies: np.ndarray
    """Seconds of each request."""
    statuses: Counter[int]
    """Responses by HTTP status; 0 for a connection that failed and for a response that is no HTTP."""

    def summary(self) -> dict[str, float]:
        """Return requests per second, latencies in milliseconds, and how many requests failed."""
        quantiles = {f"p{percent}_ms": 1000 * float(np.percentile(self.latencies, percent)) for percent in (50, 95, 99)}
        failed = sum(count for status, count in self.statuses.items() if status != 200)
        return {"requests_a_second": len(self.latencies) / self.seconds, **quantiles, "failed": failed}


def put_under_load(url: str, row: Callable[[int], dict[str, Any]], clients: int, requests: int, top_k: int) -> Load:
    """Send requests of one row each.

    Args:
        url: Where the server listens.
        row: Number of a request to its row.
        clients: Concurrent clients.
        requests: Requests of all clients together.
        top_k: Items per list.

    Returns:
        What was measured.
    """
    _send(url, [row(number) for number in range(WARM_UP)], top_k)
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        own = ([row(number) for number in range(client, requests, clients)] for client in range(clients))
        sent = list(pool.map(_send, itertools.repeat(url), own, itertools.repeat(top_k)))
    seconds = time.perf_counter() - start
    latencies = np.array([latency for client in sent for latency, _ in client])
    return Load(seconds, latencies, Counter(status for client in sent for _, status in client))


def _send(url: str, rows: Sequence[dict[str, Any]], top_k: int) -> list[tuple[float, int]]:
    """Send requests one after the other over one connection; seconds and status of each."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    found = []
    for row in rows:
        body = json.dumps({"dataframe_records": [row], "params": {"top_k": top_k}})
        start, status = time.perf_counter(), 0
        try:
            connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            status = answer.status
        except (OSError, http.client.HTTPException):
            connection.close()
        found.append((time.perf_counter() - start, status))
    connection.close()
    return found


def main() -> int:
    """Print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:5000")
    parser.add_argument("--users", required=True, help="user ids, separated by commas")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--top_k", type=int, default=10)
    options = parser.parse_args()
    users = options.users.split(",")
    load = put_under_load(
        options.url,
        lambda number: {"user_id": users[number % len(users)]},
        options.clients,
        options.requests,
        options.top_k,
    )
    print(json.dumps({**load.summary(), "statuses": dict(load.statuses)}))
    return int(load.summary()["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
