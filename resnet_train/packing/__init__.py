"""From what people hold to shards: the verb `prepare`."""
