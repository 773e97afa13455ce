"""What is wrong with a catalogue, shards, features, a run or this machine, before a night of training."""
