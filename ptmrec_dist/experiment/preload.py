"""Slow imports, done once in the fork server of an experiment's runs."""

import gc

import jsonargparse  # noqa: F401
import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
import torch_geometric  # noqa: F401

from ptmrec_dist.training import joint, stage1, stage2  # noqa: F401

# The collector of a forked run would otherwise visit, and so copy, the memory that it shares with the server.
gc.collect()
gc.freeze()
