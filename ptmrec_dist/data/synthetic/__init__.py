"""The demo's catalogue, drawn and written on the spot."""
