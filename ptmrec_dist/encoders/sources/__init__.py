"""Sources of pretrained encoders."""
