"""What a model with a memory takes and where it fits, worked out from the model's configuration alone."""
