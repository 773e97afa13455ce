"""Distributed two-stage tuning of image-text encoders for multimodal recommendation (PTMRec)."""
