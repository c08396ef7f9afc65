"""TensorBoard's event files: how they are written, and what they hold beside scalars.

They lie in the run folder itself, since TensorBoard names a run after the folder of its files.
"""

import glob
import itertools
import os
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from PIL import Image

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

_file_numbers = itertools.count()

TRAINING_FILES = "events.out.tfevents.*"
"""The pattern of the files that a training writes."""
FAMILIES = ("plain", "residual")
"""The kinds of networks whose errors have tags, and so charts, of their own."""
ERRORS = {
    "error/train_clean": "clean training error",
    "error/val_top1": "validation error",
    "error/train_running": "running training error",
}
"""The errors that the custom charts and HParams show, by their tags. HParams' table shows the first two on a screen of
1,400 pixels."""


class EventFile:
    """An event file in a log folder. It writes in the calling thread, so that a failure is an `OSError` of the call.

    torch's `SummaryWriter` writes in a thread of its own, which prints a traceback before the caller learns of it.
    """

    def __init__(self, folder: Path, prefix: str = "events.out") -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        now, host = time.time(), socket.gethostname()
        name = f"{prefix}.tfevents.{now:010.0f}.{host}.{os.getpid()}.{next(_file_numbers)}"
        self.file = (folder / name).open("wb")
        self.records, self.event, self.summary = RecordWriter(self.file), Event, Summary
        self.records.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
        self.flush()

    def add(self, summary: "Summary", step: int = 0, walltime: float | None = None) -> None:
        """Add one of the summaries below."""
        event = self.event(summary=summary, step=step, wall_time=time.time() if walltime is None else walltime)
        self.records.write(event.SerializeToString())

    def add_scalars(self, figures: Mapping[str, float | None], step: int, walltime: float) -> None:
        """Add figures by tag, in one event: one for each costs four times as much. None is left out."""
        values = [
            self.summary.Value(tag=tag, simple_value=figure) for tag, figure in figures.items() if figure is not None
        ]
        if values:
            self.add(self.summary(value=values), step, walltime)

    def flush(self) -> None:
        """Hand what was added to the operating system."""
        self.file.flush()

    def close(self) -> None:
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def attach(folder: Path, name: str, summary: "Summary", step: int) -> None:
    """Add a summary to the log of a run, in a file of its own that replaces the last one of this name.

    The file's name sorts before those of a training: TensorBoard's loader in Python reads files by name and never goes
    back, so what is attached to a run that is still trained does not hide its later steps. Raises `OSError`.
    """
    older = list(folder.glob(f"attached-{glob.escape(name)}.tfevents.*"))
    with EventFile(folder, f"attached-{name}") as events:
        events.add(summary, step)
    for path in older:
        path.unlink(missing_ok=True)


def family_tag(tag: str, family: str) -> str:
    """The tag of an error among the networks of one family, such as `error-plain/train_clean`.

    TensorBoard's custom charts choose lines by their tags, not by their runs.
    """
    return tag.replace("error/", f"error-{family}/")


def picture(tag: str, path: Path) -> "Summary":
    """A PNG file under a tag. Raises `OSError`."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    with Image.open(path) as image:
        width, height = image.size
        channels = len(image.getbands())
    encoded = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=path.read_bytes())
    return Summary(value=[Summary.Value(tag=tag, image=encoded)])


def text(tag: str, markdown: str) -> "Summary":
    """A text under a tag."""
    from tensorboard.plugins.text.summary_v2 import text_pb

    return text_pb(tag, markdown)  # type: ignore[no-any-return]


def layout() -> "Summary":
    """The tab Custom Scalars: for each error the plain networks, beside them the residual ones, then all in one chart.

    It is the same in every run, and TensorBoard shows it once. Two charts fill a row of a screen of 1,400 pixels.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata
    from tensorboard.util.tensor_util import make_tensor_proto

    categories = []
    for error, name in ERRORS.items():
        tags = {family: family_tag(error, family) for family in FAMILIES} | {"all on the same axes": error}
        charts = [
            layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=[f"{re.escape(tag)}$"]))
            for title, tag in tags.items()
        ]
        categories.append(layout_pb2.Category(title=f"{name} (%): {' | '.join(FAMILIES)}", chart=charts))
    tensor = make_tensor_proto(layout_pb2.Layout(category=categories).SerializeToString())
    tag, about = metadata.CONFIG_SUMMARY_TAG, metadata.create_summary_metadata()
    return Summary(value=[Summary.Value(tag=tag, metadata=about, tensor=tensor)])


def hyperparameters(name: str, values: Mapping[str, bool | float | str], started: float) -> list["Summary"]:
    """What the tab HParams shows of a run: its values, and its last errors as metrics.

    name: of the run, different from those of all others: TensorBoard averages runs of one name.
    """
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    metrics = [
        api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=f"{label} (%)")
        for tag, label in ERRORS.items()
    ]
    infos, start = [], plugin_data_pb2.SessionStartInfo(group_name=name, start_time_secs=started)
    for key, value in values.items():
        if isinstance(value, bool):
            kind, start.hparams[key].bool_value = api_pb2.DATA_TYPE_BOOL, value
        elif isinstance(value, str):
            kind, start.hparams[key].string_value = api_pb2.DATA_TYPE_STRING, value
        else:
            kind, start.hparams[key].number_value = api_pb2.DATA_TYPE_FLOAT64, value
        infos.append(api_pb2.HParamInfo(name=key, type=kind))
    experiment = api_pb2.Experiment(hparam_infos=infos, metric_infos=metrics)
    return [
        _hparams(metadata.EXPERIMENT_TAG, experiment=experiment),
        _hparams(metadata.SESSION_START_INFO_TAG, session_start_info=start),
    ]


def run_end(status: str, ended: float) -> "Summary":
    """How a run ended, for HParams: finished or diverged."""
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    outcome = api_pb2.STATUS_SUCCESS if status == "finished" else api_pb2.STATUS_FAILURE
    end = plugin_data_pb2.SessionEndInfo(status=outcome, end_time_secs=ended)
    return _hparams(metadata.SESSION_END_INFO_TAG, session_end_info=end)


def _hparams(tag: str, **data: Any) -> "Summary":
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    about = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(**data))
    return Summary(value=[Summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)])
