"""Recommenders whose users are indices: a table of vectors, or what a graph makes of it."""
