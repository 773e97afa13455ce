"""Where encoders come from."""
