"""Image-text encoders: loading them, tuning prompts inside them, reading features from them."""
