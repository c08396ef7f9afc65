"""Pack a data set of any common format into shards: `resnet-train prepare`."""
