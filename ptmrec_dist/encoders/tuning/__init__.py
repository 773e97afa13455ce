"""Tuning methods, attached to the blocks of an encoder's towers."""
