"""What ranks and commands import, loaded once in the server that they are forked from: seconds for each of them otherwise."""

# ruff: noqa: E402, F401

import atexit
import gc

import jsonargparse
import mlflow.pyfunc
import mlflow.store.tracking.sqlalchemy_store
import open_clip
import peft
import torch._dynamo
import torch_geometric
import transformers

import ptmrec_dist.data.downloading
import ptmrec_dist.data.importers.films
import ptmrec_dist.data.importers.tables
import ptmrec_dist.data.packing.merge
import ptmrec_dist.data.packing.pack
import ptmrec_dist.demo
import ptmrec_dist.encoders.features
import ptmrec_dist.experiment.report
import ptmrec_dist.experiment.run
import ptmrec_dist.export.command
import ptmrec_dist.registry.adding_items
import ptmrec_dist.registry.promoting
import ptmrec_dist.registry.recommending
import ptmrec_dist.serving
import ptmrec_dist.sweep.driver
import ptmrec_dist.training.contrastive
import ptmrec_dist.training.evaluating
import ptmrec_dist.training.joint
import ptmrec_dist.training.refit
import ptmrec_dist.training.stage1
import ptmrec_dist.training.stage2
from ptmrec_dist.distributed.zero import import_deepspeed

import_deepspeed()
import deepspeed.runtime.zero.muon.muon_optimizer

# The collector of a forked process would otherwise visit, and so copy, the memory that it shares with the server.
gc.collect()
gc.freeze()
atexit.register(gc.unfreeze)  # else libraries would report what is frozen as leaked
