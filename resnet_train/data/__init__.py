"""Data sets, the order of samples, their augmentation and their batches. Nothing here knows a network."""
