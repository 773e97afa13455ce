"""What commands import, loaded once in the server that they are forked from."""

import mlflow.pyfunc  # noqa: F401
import transformers  # noqa: F401

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
import ptmrec_dist.training.stage2  # noqa: F401
