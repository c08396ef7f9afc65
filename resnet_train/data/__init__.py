"""Samples, their order, their augmentation; nothing here knows a network."""
