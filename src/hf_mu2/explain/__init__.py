"""What of a volume an answer rests on, and how far to trust it."""
