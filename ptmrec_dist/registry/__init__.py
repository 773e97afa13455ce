"""The MLflow model registry: a finished run becomes a version of a registered model, and the best of them the champion.

    ptmrec register --run runs/b --name movies
    ptmrec promote --name movies
    ptmrec recommend --model models:/movies@champion --users 1,2,3 --top_k 10
    ptmrec serve --model models:/movies@champion --port 5000

A version is a pyfunc "from code" (pyfunc_entry.py) with the folder that serving/tables.py describes: no pickle, and
everything but the code, which is the installed package `ptmrec-dist`, a declared requirement of the model.
"""

from ptmrec_dist.registry.loading import load_model

__all__ = ["load_model"]
