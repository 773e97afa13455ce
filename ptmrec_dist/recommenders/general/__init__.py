"""Recommenders whose users are rows of a table of vectors, learned or propagated over a graph."""
