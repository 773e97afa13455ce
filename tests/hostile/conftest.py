"""How many cases: a few in every run of the tests, `PTMREC_CASES` or ten thousand by hand (`pytest -m fuzz tests/hostile`)."""

import os

import pytest

FEW = 12
MANY = int(os.environ.get("PTMREC_CASES", "10000"))


@pytest.fixture(params=[FEW, pytest.param(MANY, marks=pytest.mark.fuzz)], ids=["few", "many"])
def cases(request: pytest.FixtureRequest) -> int:
    """Number of cases."""
    number: int = request.param
    return number


@pytest.fixture(autouse=True)
def _canary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory, of which `for_all` sees to it that it stays empty."""
    monkeypatch.chdir(tmp_path_factory.mktemp("canary"))
