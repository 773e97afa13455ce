"""How many cases: a few in every run of the tests, ten thousand by hand (`pytest -m fuzz tests/hostile`)."""

import pytest

FEW, MANY = 12, 10_000


@pytest.fixture(params=[FEW, pytest.param(MANY, marks=[pytest.mark.fuzz, pytest.mark.slow])], ids=["few", "many"])
def cases(request: pytest.FixtureRequest) -> int:
    """Number of cases."""
    number: int = request.param
    return number
