"""Searching settings of stage 2 on a Ray cluster."""
