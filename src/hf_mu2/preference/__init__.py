"""From a model and studies to preference pairs: sample candidates, score them, pair them."""
