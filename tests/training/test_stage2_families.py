"""Stage 2 over encoders of other families than CLIP, under real DeepSpeed engines."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptmrec_dist.config import Stage2Config
from tests.conftest import make_project
from tests.encoders.families import write_family
from tests.ranks import run_on_ranks
from tests.training.test_stage2_methods import _config, _trained

pytestmark = pytest.mark.slow


def _trained_on_rank(config: Stage2Config) -> dict[str, Any]:
    """Here, so that each rank imports this module and with it the tiny models of timm."""
    return _trained(config)


@pytest.mark.parametrize(("family", "method"), [("eva", "lora"), ("xlm_roberta", "prompt"), ("siglip", "adapter")])
def test_two_ranks_under_zero_3_move_what_is_tuned_as_under_zero_1(tmp_path: Path, family: str, method: str) -> None:
    (tmp_path / "project").mkdir()
    project = make_project(tmp_path / "project", write_family(tmp_path / "encoder", family))
    expected: dict[str, np.ndarray] = {}
    for zero in (1, 3):
        config = _config(project, tmp_path / f"zero{zero}", method, zero, gradient_checkpointing=zero == 3)
        found = run_on_ranks(2, _trained_on_rank, config)[0]
        assert list(found["moved"]) == found["may"] != []
        expected = expected or found["moved"]
        for name, moved in found["moved"].items():
            # Adam makes a whole step of 1e-3 of a gradient that is nearly zero, whatever its sign.
            assert (np.abs(moved - expected[name]) > 1e-4).mean() < 0.01, (name, zero)
