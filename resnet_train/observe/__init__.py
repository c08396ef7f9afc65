"""What can be seen of a network and its training: the record, complexity, probes, the machine."""
