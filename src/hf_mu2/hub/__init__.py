"""Bring checkpoints in and out: assemble a starting one, convert published ones."""
