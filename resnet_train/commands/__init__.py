"""The commands: one file for each, the only code that prints results."""
