"""Training: the only package that imports both encoders and recommenders."""
