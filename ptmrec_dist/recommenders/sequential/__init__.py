"""Recommenders of the next item, whose users are histories."""
