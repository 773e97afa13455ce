"""Slow imports, done once in the fork server of an experiment's runs."""

from ptmrec_dist.training import joint, stage1, stage2  # noqa: F401
