"""What can be seen of a run: metrics and complexity."""
