"""From a YAML file to a validated experiment; nothing here imports torch."""
