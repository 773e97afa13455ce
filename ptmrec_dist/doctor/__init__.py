"""Checks of catalogues, shards, features, runs and this machine before training (`ptmrec doctor`)."""
