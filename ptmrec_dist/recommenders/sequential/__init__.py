"""Sequence recommenders, whose users are histories."""
