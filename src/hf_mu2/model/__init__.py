"""What ships to the Hub with a checkpoint: configs, volumes, processors and models."""
