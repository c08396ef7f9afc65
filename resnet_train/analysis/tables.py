"""The table of a comparison for a terminal, and its files: two figures, `compare.md`, `.csv` and `.json`. No torch."""

import csv
import json
from collections.abc import Collection, Sequence
from pathlib import Path

from resnet_train.analysis import figures, sweep_figure
from resnet_train.analysis.findings import findings, warnings
from resnet_train.analysis.groups import Group, error_columns, footnotes, protocols
from resnet_train.analysis.loss_figure import draw_loss
from resnet_train.analysis.published import add_published, published, published_rows, reasons
from resnet_train.analysis.style import Output
from resnet_train.analysis.sweeps import at_best, best_note, rows, swept_keys
from resnet_train.config.sweep import value_text
from resnet_train.errors import BadInput
from resnet_train.runs.records import Record
from resnet_train.runtime.tables import columns, percent, short

_COSTS = ("parameters", "multiply-adds", "images/s", "hours")


def text_table(groups: Sequence[Group]) -> str:
    """Errors in percent, mean ± standard deviation over seeds, and costs, for a terminal."""
    lines: list[tuple[str, ...]] = []
    records, keys = rows(groups), swept_keys(groups)
    for row in records:
        names = {name: text for name, text in error_columns(row, short=True).items() if not name.startswith("best")}
        headings = _with_medians(names, records)
        if not lines:
            lines.append(("network", *keys, "seeds", "step", *headings.values(), *_COSTS))
        lines.append(
            (
                row["network"],
                *_values(row, keys, "* {}"),
                str(row["seeds"]),
                _step(row),
                *_errors(row, headings),
                *_costs(row),
            )
        )
    return "\n".join([columns(lines), *footnotes(groups), *(f"* {note}" for note in best_note(groups))])


def _values(row: Record, keys: Sequence[str], best: str) -> list[str]:
    """Cells of swept values; those of the best are set into `best`."""
    texts = [value_text(row[key]) for key in keys]
    return [best.format(text) for text in texts] if row.get("best_of_sweep") else texts


def _with_medians(headings: dict[str, str], records: Sequence[Record]) -> dict[str, str]:
    """Columns and headings, with a median after the mean of the validation error where a network has three seeds.

    He et al. 2016 and Zagoruyko and Komodakis 2016 report medians of five.
    """
    columns = {}
    for name, text in headings.items():
        columns[name] = text
        if name.startswith("val_error_top1") and max(row["seeds"] for row in records) > 2:
            columns[name.replace("top1", "top1_median")] = f"median{name.removeprefix('val_error_top1')}"
    return columns


def _errors(row: Record, names: Collection[str]) -> list[str]:
    """Cells of errors. A column of another protocol is empty in this row; a median has no deviation."""
    deviations = (row.get(name.replace(" [", "_std [") if "[" in name else f"{name}_std") for name in names)
    return [percent(row[name], deviation) for name, deviation in zip(names, deviations, strict=True)]


def _step(row: Record) -> str:
    return "–" if row["step"] is None else f"{row['step']:,}"


def _costs(row: Record) -> list[str]:
    hours = "–" if row["hours"] is None else f"{row['hours']:.3g}"
    return [*(short(row[name]) for name in ("params", "macs", "images_per_second")), hours]


def write_comparison(
    groups: Sequence[Group],
    out: Path,
    output: Output = Output(),  # noqa: B008
    with_loss: bool = False,
) -> list[Path]:
    """Write the figures, `compare.md`, `compare.csv` and `compare.json` into a folder; their paths.

    Figures of depth and cost show each network at the best value of a sweep, which has a figure of its own.
    with_loss: the figure of the training loss, too. Raises `BadInput` where the folder cannot be written.
    """
    markdown, sheet, as_json = files = [out / name for name in ("compare.md", "compare.csv", "compare.json")]
    records = add_published(rows(groups), groups)
    try:
        out.mkdir(parents=True, exist_ok=True)
        paths = figures.draw_curves(at_best(groups), out / "compare.png", output)
        paths += figures.draw_costs(at_best(groups), out / "compare-cost.png", output)
        if with_loss:
            paths += draw_loss(at_best(groups), out / "compare-loss.png", output)
        if swept_keys(groups):
            paths += sweep_figure.draw_sweeps(groups, out / "compare-sweep.png", output)
        markdown.write_text(_markdown(groups, output.formats[0], with_loss), "utf-8", "surrogateescape")
        with sheet.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.DictWriter(file, records[0].keys())
            writer.writeheader()
            writer.writerows(records)
        as_json.write_text(json.dumps(records, indent=2) + "\n", "utf-8")
    except OSError as error:
        raise BadInput(f"--out: cannot write {out}: {error.strerror or error}") from None
    return [*paths, *files]


def table(groups: Sequence[Group], best: str = "* {}") -> list[list[str]]:
    """All columns of a comparison, the first row of headings. The best values of a sweep are set into `best`."""
    records = rows(groups)
    errors, keys = _with_medians(error_columns(records[0]), records), swept_keys(groups)
    lines = [["network", *keys, "depth", "seeds", "step", *errors.values(), *_COSTS]]
    for row in records:
        cells = [row["network"], *_values(row, keys, best), str(row["depth"]), str(row["seeds"]), _step(row)]
        lines.append([*cells, *_errors(row, errors), *_costs(row)])
    return lines


def _markdown(groups: Sequence[Group], suffix: str, with_loss: bool) -> str:
    headings, *body = table(groups, best="**{}**")
    keys = swept_keys(groups)
    lines = ["# Error across depths", "", f"![error across depths](compare.{suffix})", ""]
    lines += [f"![error against cost](compare-cost.{suffix})", ""]
    lines += [f"![training loss](compare-loss.{suffix})", ""] if with_loss else []
    if keys:
        lines += [f"![error against {' and '.join(keys)}](compare-sweep.{suffix})", ""]
    lines += [f"| {' | '.join(headings)} |", f"| --- {'| ---: ' * (len(headings) - 1)}|"]
    lines += [f"| {' | '.join(cells)} |" for cells in body]
    lines += ["", "Errors in percent, mean ± standard deviation over seeds.", ""]
    lines += [f"Bold, and in the figures above: {note}." for note in best_note(groups)] + [""] * bool(keys)
    lines += [f"Validation protocol: {'; '.join(footnotes(groups) or protocols(groups))}.", ""]
    found = published(groups)
    if found:
        head, *published_cells = published_rows(found)
        lines += ["## Published and measured", "", f"| {' | '.join(head)} |"]
        lines += ["| --- | --- | ---: | ---: | ---: | --- | --- |"]
        lines += [f"| {' | '.join(row)} |" for row in published_cells]
        lines += ["", "In brackets the number of seeds, or of the source's trainings where there are several.", ""]
    lines += [f"- {line}" for line in [*reasons(found), *findings(groups), *warnings(groups)]]
    return "\n".join(lines).rstrip() + "\n"
