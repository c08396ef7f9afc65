"""Evaluation of trained networks: protocols, logits, confusion, prediction, export."""
