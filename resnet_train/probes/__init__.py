"""Probes: gradients and responses by depth, lesions, and their figures."""
