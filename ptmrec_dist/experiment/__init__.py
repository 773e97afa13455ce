"""Experiments (`ptmrec experiment`): a grid of runs that are compared, and the tables of the comparison."""
