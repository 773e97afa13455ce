"""The MLflow model registry: register finished runs as versions of a model, and promote the best one to champion.

    ptmrec register --run runs/b --name movies
    ptmrec promote --name movies
    ptmrec recommend --model models:/movies@champion --users 1,2,3 --top_k 10
    ptmrec serve --model models:/movies@champion --port 5000

A version is a pyfunc "models from code" (pyfunc_entry.py) with the folder described in serving/tables.py. It has no pickle and
contains everything but the code: that is the package `ptmrec-dist`, a declared requirement of the model.
"""

from ptmrec_dist.registry.loading import load_model

__all__ = ["load_model"]
