"""From a catalogue and its interactions to packed shards, and back to batches."""
