"""Tuned encoders in the formats of other libraries."""
