"""From a YAML file to a validated experiment. It imports no torch and reads no file but YAML."""
