"""What a process needs: ranks, precision, signals, progress, files and locks, child processes."""
