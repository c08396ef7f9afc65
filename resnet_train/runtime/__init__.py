"""The process: ranks, precision, signals, files and worker processes."""
