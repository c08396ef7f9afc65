"""Which keys define a run, and which only say where, how and how often it is trained, saved and measured."""

import re

from resnet_train.config.yaml12 import Tree

RESUME_MAY_CHANGE = frozenset(
    {
        *("data.path", "data.class_map", "data.val_labels", "data.download", "data.workers"),
        *("data.device_cache_gb", "train.device", "eval.batch_size", "train.on_divergence", "train.timeout"),
        "expect",
    }
)
"""Keys that say where and how a run is trained, and what is expected of it, not what it is. They may change when it
resumes."""

_MAY_CHANGE_UNDER = ("checkpoint.", "eval.every.", "log.every.", "sweep.")
_PROBE_INTERVAL = re.compile(r"probes\.\w+\.every\.")
"""When a run is measured and saved changes no weight, so neither do these keys; what a sweep sets is in its own key."""


def is_defining(key: str) -> bool:
    """Whether two runs that differ in this dotted key are different runs."""
    return key not in RESUME_MAY_CHANGE and not key.startswith(_MAY_CHANGE_UNDER) and not _PROBE_INTERVAL.match(key)


def flatten(tree: Tree, prefix: str = "") -> Tree:
    """Nested mappings as dotted keys."""
    leaves: Tree = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        leaves |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return leaves
