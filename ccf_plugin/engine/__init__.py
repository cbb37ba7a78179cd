"""How things run on a device. Knows nothing of models, data or training."""
