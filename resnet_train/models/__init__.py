"""Networks from a `NetConfig`; they know no data set."""
