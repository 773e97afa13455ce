"""Objectives of training: modules from a batch to named loss terms."""
