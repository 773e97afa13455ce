"""Image-text encoders: loading, tuning, and feature extraction."""
