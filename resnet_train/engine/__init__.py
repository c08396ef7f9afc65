"""Ranks, plan, optimizer, step, checkpoint: what a training is made of, and what networks are read from afterwards."""
