"""Probes during a training, and the verb `probe`, which sets networks side by side."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resnet_train.config.schema import LesionConfig, ProbeConfig
from resnet_train.data import datasets
from resnet_train.errors import BadInput
from resnet_train.evaluation import pretrained
from resnet_train.probes import figures as probe_figures
from resnet_train.probes.hooks import ProbeResult
from resnet_train.probes.measure import run_probe
from resnet_train.runs import run_folder
from resnet_train.runtime import distributed
from resnet_train.runtime.precision import set_precision
from resnet_train.runtime.tables import columns


def compare(
    kind: str, names: Sequence[str], data: str | None, images: int | None, seed: int, out: Path | None, as_json: bool
) -> None:
    """Probe checkpoints and fresh networks of the zoo; a table, and a picture with plain left and residual right.

    Run folders give the heat maps of the gradients that they recorded. Raises `BadInput`.
    """
    folders = [Path(name) for name in names if Path(name).is_dir()]
    out = out or Path(f"{kind}.png")
    if folders:
        if kind != "gradients" or len(folders) < len(names):
            raise BadInput(f"{folders[0]} is a folder: run folders are for `probe gradients`, by themselves")
        recorded = run_folder.find(folders)
        if not probe_figures.draw_heat_maps(recorded, out, None):
            raise BadInput(f"{folders[0]} has no gradients on record: train with probes.gradients={{}}")
        print(f"wrote {out}")
        return
    with distributed.start("auto") as world:
        found: dict[str, ProbeResult] = {}
        plain: dict[str, bool] = {}
        for name in names:
            one = _load(name, data, seed)
            train_set, val_set = datasets.open_data(one.run.data)
            source = val_set if kind == "lesion" else train_set
            count = images or (LesionConfig() if kind == "lesion" else ProbeConfig()).images
            # A CPU, which has no tf32, may yet probe a run of it.
            set_precision("fp32" if world.device.type == "cpu" else one.run.train.precision, world.device)
            one = one.to(world.device)
            label = one.name if one.name not in found else name
            found[label] = run_probe(kind, one.network, one.run, source, count, one.normalization, world.device)
            plain[label] = one.run.network.plain
        if not world.is_main:
            return
        try:
            probe_figures.draw_side_by_side(kind, found, plain, out)
        except OSError as error:
            raise BadInput(f"--out: cannot write {out}: {error.strerror}") from None
        print(json.dumps(found, indent=2) if as_json else f"{_table(found)}\nwrote {out}")


def _load(name: str, data: str | None, seed: int) -> pretrained.PretrainedModel:
    if Path(name).is_file():
        return pretrained.load(name, data=None if data in ("digits", "synthetic") else data)
    if Path(name).suffix in (".pt", ".pth"):
        raise BadInput(f"{name}: no such checkpoint; expected a file such as RUN/checkpoints/best.pt")
    if data is None:
        raise BadInput(f"{name} is untrained and knows no data: give --data digits, synthetic or a folder")
    return pretrained.untrained(name, data, seed=seed)


def _table(found: Mapping[str, ProbeResult]) -> str:
    """A row for each unit or layer, a column for each network."""
    told = []
    for what in dict.fromkeys(what for figures in found.values() for what in figures):
        by_network = {name: figures.get(what, {}) for name, figures in found.items()}
        places = sorted({place for figures in by_network.values() for place in figures}, key=_in_order)
        rows: list[Any] = [(what, *by_network)]
        for place in places:
            rows.append((place, *(_number(values.get(place)) for values in by_network.values())))
        for summary, of in (("median", np.median), ("largest / smallest", lambda x: max(x) / max(min(x), 1e-30))):
            values = [[v for v in one.values() if v is not None] for one in by_network.values()]
            rows.append((summary, *(_number(float(of(v))) if v else "–" for v in values)))
        told.append(columns(rows))
    return "\n\n".join(told)


def _in_order(place: str) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in place.replace(" ", ".").split(".")]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
