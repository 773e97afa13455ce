"""Ways of tuning an encoder, attached to the blocks of its towers."""
