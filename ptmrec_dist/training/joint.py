"""Joint training: encoder and recommender are trained together, without stage 1 and without a teacher.

ptmrec joint --shards shards/movies --features features/movies --recommender vbpr --out runs/j

The end-to-end way of Large Multi-modal Encoders for Recommendation (arXiv 2310.20343), and of PTMRec's comparison with
prompts that no recommender has prepared. As stage 2, started from an untrained recommender; a sequence recommender is
trained on users and their sequences, as in stage 1, and each distinct item of a step is encoded once (MoRec, PMMRec).
"""

from dataclasses import replace

import torch

from ptmrec_dist.config import JointConfig
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.distributed import join_world
from ptmrec_dist.errors import UserError
from ptmrec_dist.lock import exclusive_out
from ptmrec_dist.recommenders import recommender_class
from ptmrec_dist.recommenders.sequences import SequenceRecommender
from ptmrec_dist.training.end_to_end import train_on_sequences
from ptmrec_dist.training.finished_run import FinishedRun, tensors_of, untrained_recommender
from ptmrec_dist.training.inputs import open_store, untrained_record
from ptmrec_dist.training.records import relocated_encoder
from ptmrec_dist.training.refit import refit_if_asked
from ptmrec_dist.training.tune import tune


@exclusive_out
def train_joint(config: JointConfig) -> None:
    """Train an encoder and a recommender together from scratch and write the run folder (`ptmrec joint`).

    Collective: every rank must call this.

    Args:
        config: Settings.

    Raises:
        UserError: A recommender that reads no features, or codes of them alone; features that are missing or of other data;
            all that stage 2 refuses.
    """
    dataset = Dataset(config.shards)
    store = open_store(config, dataset)
    if store is None:
        raise UserError(
            f"recommender: {config.recommender} knows items by their IDs only; choose one that reads features"
        )
    if not recommender_class(config.recommender).trains_features:
        raise UserError(
            f"recommender: got {config.recommender}, which reads codes of features, so that no gradient reaches the encoder; "
            "train it by `ptmrec stage1`, or choose another"
        )
    record = untrained_record(config, dataset, store)
    if record.encoder is not None:
        record = replace(record, encoder=relocated_encoder(record.encoder, config))
    torch.manual_seed(config.seed)
    world = join_world(config.device, config.timeout)
    recommender = untrained_recommender(record, dataset, config.out, world)
    start = FinishedRun(store.folder, record, dataset, tensors_of(store, record.modalities), recommender)
    if isinstance(recommender, SequenceRecommender):
        train_on_sequences(config, start)
    else:
        tune(config, start)
    refit_if_asked(config)
