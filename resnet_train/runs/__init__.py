"""The run folder and the checkpoint file: the contract between training and reading."""
