"""The training of one run and of a grid of runs."""
