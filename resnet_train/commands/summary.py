"""Networks side by side: what each costs, as ratios to one of them, and against the papers' table."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet_train.config.network import AnyNet
from resnet_train.errors import BadInput
from resnet_train.models import complexity
from resnet_train.runtime.tables import columns, short

PAPER = {
    "resnet-18": 1.8e9,
    "resnet-34": 3.6e9,
    "resnet-50": 3.8e9,
    "resnet-101": 7.6e9,
    "resnet-152": 11.3e9,
    "vgg-16": 15.3e9,
    "vgg-19": 19.6e9,
}
"""Multiply-adds at 224 px: He et al. 2015, table 1 and section 3.3. Digits are cut off rather than rounded there, and
VGG-16's are without its fully connected layers: so they agree to `_CLOSE`."""

_CLOSE = 0.2e9
_ORDER = {-1: "lower complexity than", 0: "the complexity of", 1: "higher complexity than"}
_FIGURES = {
    "depth": "depth",
    "params": "parameters",
    "macs": "multiply-adds",
    "activations": "activations",
    "memory_fp32": "memory an image, fp32",
    "memory_bf16": "memory an image, bf16 or fp16",
}


def against(
    reference: AnyNet, networks: Sequence[AnyNet], size: int | None, classes: int | None, out: Path, as_json: bool
) -> str:
    """The table of `networks` against a reference at one image size; its picture goes to `out`. Raises `BadInput`."""
    usual_size, usual_classes = complexity.default_input(reference)
    pixels, outputs = size or usual_size, classes or usual_classes
    told = [_cost(network, pixels, outputs) for network in {n.name: n for n in (reference, *networks)}.values()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _draw(told, out)
    except OSError as error:
        raise BadInput(f"--out: cannot write {out}: {error.strerror}") from None
    except ValueError as error:  # matplotlib's, of a file name's ending
        raise BadInput(f"--out: cannot write {out}: {error}") from None
    if as_json:
        return json.dumps(told, indent=2)
    first = told[0]
    rows: list[tuple[str, ...]] = [("network", *_FIGURES.values(), "paper")]
    for one in told:
        cells = [f"{_figure(one, key)} ({one[key] / first[key]:.2f})" for key in _FIGURES]
        rows.append((one["network"], *cells, _paper(one)))
    lines = [f"{pixels} px, {outputs} classes; in brackets the ratio to {first['network']}", columns(rows)]
    for one in told[1:]:
        order = (one["macs"] > first["macs"]) - (one["macs"] < first["macs"])
        lines.append(
            f"{one['network']}: {one['depth']} layers, {_ORDER[order]} {first['network']} "
            f"({one['macs'] / first['macs']:.2f} of its multiply-adds)"
        )
    return "\n".join([*lines, f"wrote {out}"])


def _cost(network: AnyNet, size: int, classes: int) -> dict[str, Any]:
    cost = complexity.network_complexity(network, size, classes)
    memory = {
        f"memory_{precision}": complexity.estimate_training_memory(cost, 1, precision, False)
        - complexity.estimate_training_memory(cost, 0, precision, False)
        for precision in ("fp32", "bf16")
    }
    paper = PAPER.get(network.name) if (size, classes) == (224, 1000) else None
    whole = {"params": cost.params, "macs": cost.macs, "activations": cost.activations}
    return {"network": network.name, "depth": network.depth, **whole, **memory, "paper_macs": paper}


def _figure(one: dict[str, Any], key: str) -> str:
    return short(one[key]) + "B" * key.startswith("memory")


def _paper(one: dict[str, Any]) -> str:
    if one["paper_macs"] is None:
        return "–"
    agrees = abs(one["macs"] - one["paper_macs"]) <= _CLOSE
    return f"{short(one['paper_macs'])}, {'agrees' if agrees else 'DIFFERS'}"


def _draw(told: Sequence[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    shown = {key: _FIGURES[key] for key in ("depth", "params", "macs", "activations")}
    shown["activations"] += " (memory an image: fp32, bf16)"  # which is in proportion to them
    figure = Figure(figsize=(4 * len(shown), 1.2 + 0.4 * len(told)), layout="constrained")
    names = [one["network"] for one in told]
    for ax, (key, title) in zip(figure.subplots(1, len(shown), sharey=True), shown.items(), strict=True):
        labels = [_figure(one, key) for one in told]
        if key == "activations":
            memory = [f"({_figure(one, 'memory_fp32')}, {_figure(one, 'memory_bf16')})" for one in told]
            labels = [f"{label} {more}" for label, more in zip(labels, memory, strict=True)]
        bars = ax.barh(names, [one[key] for one in told], color=["#D55E00"] + ["#0072B2"] * (len(told) - 1))
        ax.bar_label(bars, labels, fontsize=8, padding=2)
        ax.set_title(title, fontsize=10)
        ax.set_xticks([])
        ax.margins(x=0.7 if key == "activations" else 0.25)
    ax.invert_yaxis()  # shared: the reference is on top
    figure.savefig(path, dpi=130)
