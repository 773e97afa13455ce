"""A registered model at work: it recommends to users and visitors, and scores new items. Knows nothing of MLflow."""

from ptmrec_dist.serving.model import ServedModel

__all__ = ["ServedModel"]
