"""What sources report beside what was measured, and whether the two agree. No torch."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from resnet_train.analysis.groups import ERRORS, Group
from resnet_train.analysis.significance import LEVEL, sampling_error
from resnet_train.config.expect import EXPECTED_ERRORS, ExpectConfig, Figure, FigureConfig, text
from resnet_train.errors import wrap
from resnet_train.runs.records import Record
from resnet_train.runtime.tables import columns, few, percent

_RELATIVE_MARGIN, _LEAST_MARGIN = 0.1, 0.5
"""Figures agree only if a difference of a tenth of the published one, at least half a point, would be significant."""


@dataclass(frozen=True)
class Measured:
    """Errors of one network under one protocol, beside which published ones may stand."""

    label: str
    """Of the network, for people."""
    network: str
    """Its name, by which `expect` knows it."""
    expect: tuple[ExpectConfig, ...]
    protocol: str
    """`eval.protocol`."""
    val_images: int
    values: Mapping[str, Sequence[float]]
    """By error, of `EXPECTED_ERRORS` those that are compared: its values in percent, one for each seed; none before the
    first."""
    images: Mapping[str, int]
    """By error with values: on how many images it was measured."""
    reasons: tuple[str, ...] = ()
    """Why it is of another recipe than `expect`, or not of the end of a training, in words."""


@dataclass(frozen=True)
class Published:
    """A published error of one network beside the measured one."""

    label: str
    """Of the network."""
    error: str
    """One of `EXPECTED_ERRORS`."""
    entry: ExpectConfig
    figure: Figure
    measured: float | None
    """Mean over seeds; where the source reports a median, the median. None before the first measurement."""
    std: float | None
    seeds: int
    difference: float | None
    """Measured minus published, in points of a percent; of a range, from its nearer end."""
    verdict: str
    """`agrees`, `better`, `worse`, `too few seeds to tell` or `another protocol`."""
    reasons: tuple[str, ...]
    """Why it is another protocol."""

    @property
    def measured_text(self) -> str:
        if self.measured is not None and isinstance(self.figure, FigureConfig) and self.figure.median is not None:
            return f"{self.measured:.2f} (median of {self.seeds})"
        return percent(self.measured, self.std) + (f" ({self.seeds})" if self.seeds > 1 else "")


def published(groups: Sequence[Group]) -> list[Published]:
    """For each network and error the published figure that is of its protocol or, without one, nearest to it."""
    return [one for group in groups for one in beside(_measured(group))]


def _measured(group: Group) -> Measured:
    run, start, then = group.runs[0].run, group.runs[0].records[0], group.at(group.step)
    values = {error: list(then.by_seed(error).values()) for error in EXPECTED_ERRORS}
    return Measured(
        group.label,
        group.network.name,
        group.expect,
        run.eval.protocol,
        start["val_images"],
        values,
        {error: then.images(error) for error in EXPECTED_ERRORS if values[error]},
        (
            *changed_pixels(group.protocol),
            *([] if group.is_finished else [f"step {group.step or 0:,} of {start['steps']:,}"]),
        ),
    )


def changed_pixels(protocol: str) -> list[str]:
    """Of a protocol in words, that `prepare` changed the pixels of the images, which sources do not."""
    _, comma, changes = protocol.partition(";")[0].partition(", ")
    return [f"packed images, {changes}"] if comma else []


def beside(measured: Measured) -> list[Published]:
    """For each error the published figure that is of its protocol: the first that differs for the fewest reasons."""
    found = []
    for error in measured.values:
        entries = [entry for entry in measured.expect if measured.network in entry.figures(error)]
        if entries:
            entry = min(entries, key=lambda one: len(_reasons(measured, error, one)))
            found.append(_published(measured, error, entry))
    return found


def _published(measured: Measured, error: str, entry: ExpectConfig) -> Published:
    figure, reasons = entry.figures(error)[measured.network], _reasons(measured, error, entry)
    values = measured.values.get(error, ())
    centre, difference, verdict = compare_with(figure, values, measured.images[error]) if values else (None, None, "")
    std = statistics.stdev(values) if len(values) > 1 else None
    verdict = "another protocol" if reasons else verdict
    return Published(measured.label, error, entry, figure, centre, std, len(values), difference, verdict, reasons)


def _reasons(measured: Measured, error: str, entry: ExpectConfig) -> tuple[str, ...]:
    """Why a figure is not of the recipe or the protocol of what was measured."""
    reasons = list((entry.differs or {}).get(measured.network, ()))
    if error != "train_error" and measured.protocol != entry.protocol:
        hint = (
            f": `resnet-train eval FOLDER --protocol {entry.protocol}` measures it" if error.startswith("val") else ""
        )
        reasons.append(f"eval.protocol = {measured.protocol}, not {entry.protocol}{hint}")
    if measured.val_images != entry.val_images:
        reasons.append(f"{measured.val_images:,} validation images, not {entry.val_images:,}")
    return (*reasons, *measured.reasons)


def compare_with(figure: Figure, values: Sequence[float], images: int) -> tuple[float, float, str]:
    """What was measured, in the form of a published figure, its difference to it, and the verdict.

    values: an error in percent for each seed, measured on so many images.
    """
    measured, difference = _difference(figure, values)
    half_width = _half_width(figure, values, images)
    if half_width is None:
        verdict = "too few seeds to tell"
    elif abs(difference) > half_width + 1e-9:
        verdict = "better" if difference < 0 else "worse"
    else:
        verdict = "agrees" if half_width <= _margin(figure) else "too few seeds to tell"
    return measured, difference, verdict


def _difference(figure: Figure, values: Sequence[float]) -> tuple[float, float]:
    mean = statistics.mean(values)
    if not isinstance(figure, FigureConfig):
        return mean, mean - figure
    if figure.low is not None and figure.high is not None:
        return mean, mean - min(max(mean, figure.low), figure.high)
    if figure.median is not None:
        return statistics.median(values), statistics.median(values) - figure.median
    assert figure.mean is not None
    return mean, mean - figure.mean


def _half_width(figure: Figure, values: Sequence[float], images: int) -> float | None:
    """Half the width of the 95 % confidence interval of the difference; None where one side or the other has no spread.

    Both deviations known: Welch's. One of them known: Student's, with that deviation for both sides. The variance of a
    median is pi / 2 times that of a mean (of normal values, for many of them). The ends of a range are exact. A single
    seed, or seeds whose errors are equal by chance, must also differ by two standard errors of the images.
    """
    from scipy import stats

    n, theirs = len(values), figure if isinstance(figure, FigureConfig) else FigureConfig(mean=figure, n=1)
    variance = statistics.variance(values) if n > 1 else None
    m, their_variance = theirs.n or math.inf, None if theirs.std is None else theirs.std**2
    if variance is not None and their_variance is not None:
        ours, others = variance / n, their_variance / m
        total = ours + others
        freedom = total**2 / (ours**2 / (n - 1) + others**2 / (m - 1)) if total else 1.0
    elif variance is not None:
        total, freedom = variance * (1 / n + 1 / m) * (1 if theirs.median is None else math.pi / 2), n - 1
    elif their_variance is not None:
        total, freedom = their_variance * (1 + 1 / m), m - 1
    else:
        return None
    half_width = float(stats.t.ppf(1 - LEVEL / 2, freedom)) * math.sqrt(total)
    mean = statistics.mean(values)
    return half_width if n > 1 and total else max(half_width, 200 * sampling_error(mean, images, mean, images))


def _margin(figure: Figure) -> float:
    """The difference that an agreement excludes; within a range there is none."""
    value, spread = figure.centre if isinstance(figure, FigureConfig) else (figure, 0.0)
    within = spread if isinstance(figure, FigureConfig) and figure.low is not None else 0.0
    return max(_LEAST_MARGIN, _RELATIVE_MARGIN * value, within)


def published_rows(found: Sequence[Published], short: bool = False) -> list[tuple[str, ...]]:
    """Rows of a table of published and measured errors, the first of headings. Empty where nothing is published."""
    if not found:
        return []
    table: list[tuple[str, ...]] = [("network", "error", "measured", "published", "difference", "verdict", "source")]
    for one in found:
        difference = "–" if one.difference is None else f"{one.difference:+.2f}"
        error = ERRORS[one.error][short]
        row = (one.label, error, one.measured_text, text(one.figure), difference, one.verdict, one.entry.source)
        table.append(row)
    return table


def published_table(found: Sequence[Published], width: int | None = None) -> str:
    """The table for a terminal, and why figures are of another protocol. Empty where nothing is published.

    width: of the terminal; sources are then named below the table.
    """
    if not found:
        return ""
    table, notes = published_rows(found, short=True), reasons(found)
    if width is not None:
        sources = list(dict.fromkeys(one.entry.source for one in found))
        letters = {source: f"({i})" for i, source in enumerate(sources, 1)}
        table = [table[0], *((*row[:-1], letters[row[-1]]) for row in table[1:])]
        notes = [*(f"{letters[source]} {source}" for source in sources), *notes]
    return "\n".join([columns(table, width, fixed=2), *(wrap(note, width) for note in notes)])


def reasons(found: Sequence[Published]) -> list[str]:
    """A sentence for each reason for which figures are of another protocol, with the networks."""
    networks: dict[str, dict[str, None]] = {}
    for one in found:
        for reason in one.reasons:
            networks.setdefault(reason, {})[one.label] = None
    return [f"another protocol: {reason} ({few(labels)})" for reason, labels in networks.items()]


def add_published(records: Sequence[Record], groups: Sequence[Group]) -> list[Record]:
    """Rows of groups with columns for what is published of any of them: `published_ERROR` as text, `difference_ERROR`,
    `verdict_ERROR` and `source_ERROR`."""
    found = [{one.error: one for one in published([group])} for group in groups]
    errors = [error for error in EXPECTED_ERRORS if any(error in by_error for by_error in found)]
    table = []
    for record, by_error in zip(records, found, strict=True):
        row = dict(record)
        for error in errors:
            row |= published_columns(error, by_error.get(error))
        table.append(row)
    return table


def published_columns(name: str, one: Published | None) -> Record:
    """The columns of `add_published` for one error, which a table calls `name`."""
    return {
        f"published_{name}": one and text(one.figure),
        f"difference_{name}": one and one.difference,
        f"verdict_{name}": one and one.verdict,
        f"source_{name}": one and one.entry.source,
    }
