"""From a catalogue and a log to a packed data set: read, filtered, split, and written as shards and tables."""
