"""The schema for editors and readers: JSON Schema, and the tables of docs/config.md."""

from resnet_train.config.schema import Experiment
from resnet_train.config.yaml12 import Tree


def json_schema() -> Tree:
    """The JSON Schema of an experiment file.

    It has the keys that `load` resolves before validation: `base` in a file, names and `base` in `networks`.
    """
    schema = Experiment.model_json_schema()
    networks = ("NetConfig", "VGGConfig")
    base = {"type": "string", "description": "The network of the zoo that this one starts from."}
    for definition in (schema["$defs"][name] for name in networks):
        definition["properties"] = {"base": base, **definition["properties"]}
        definition["required"] = []  # `base` can provide any of them
    references = [{"$ref": f"#/$defs/{name}"} for name in networks]
    schema["properties"]["networks"]["items"] = {"anyOf": [{"type": "string"}, *references]}
    schema["properties"]["base"] = {"type": "string", "description": "A file, beside this one, to start from."}
    schema["required"] = []  # the file of `base` can provide any of them
    return schema
