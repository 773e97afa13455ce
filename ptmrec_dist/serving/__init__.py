"""Inference with a registered model: lists for users and visitors, scores of new items. Does not depend on MLflow."""

from ptmrec_dist.serving.model import ServedModel

__all__ = ["ServedModel"]
