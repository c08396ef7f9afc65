"""A comparison as text for a terminal, and its files: figures, `compare.md`, `.csv` and `.json`. No torch."""

import csv
import json
from collections.abc import Collection, Sequence
from pathlib import Path

from resnet_train.analysis import figures, sweep_figure
from resnet_train.analysis.data_sets import by_data_set
from resnet_train.analysis.findings import findings, warnings
from resnet_train.analysis.groups import Group, error_columns, footnotes, protocols
from resnet_train.analysis.loss_figure import draw_loss
from resnet_train.analysis.published import add_published, published, published_rows, published_table, reasons
from resnet_train.analysis.style import Output
from resnet_train.analysis.sweeps import at_best, best_note, rows, swept_keys
from resnet_train.config.sweep import safe_text, value_text
from resnet_train.errors import BadInput, wrap
from resnet_train.runs.records import Record
from resnet_train.runtime.tables import columns, few, percent, short

_COSTS = ("parameters", "multiply-adds", "images/s", "hours")


def text(groups: Sequence[Group], width: int | None = None) -> str:
    """The comparison for a terminal: for each data set the table, published errors, warnings and findings.

    width: characters in a line; `None`: of any length, with all columns of a table side by side.
    """
    sections = by_data_set(groups)
    parts = []
    for name, members in sections.items():
        found = published(members)
        heading = f"{name}: {few(dict.fromkeys(group.experiment for group in members))}\n" if len(sections) > 1 else ""
        table, expected = text_table(members, width), published_table(found, width)
        sentences = wrap("\n".join([*warnings(members), *findings(members)]), width)
        parts.append("\n\n".join(filter(None, [heading + table, expected, sentences])))
    return "\n\n\n".join(parts)


def text_table(groups: Sequence[Group], width: int | None = None) -> str:
    """Errors in percent, mean ± standard deviation over seeds, and costs, for a terminal of so many characters."""
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
    notes = [*footnotes(groups), *(f"* {note}" for note in best_note(groups))]
    return "\n".join([columns(lines, width, fixed=1 + len(keys)), *([wrap("\n".join(notes), width)] if notes else [])])


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

    Of several data sets each has its figures, such as compare-digits.png.

    Figures of depth and cost show each network at the best value of a sweep, which has a figure of its own.
    with_loss: the figure of the training loss, too. Raises `BadInput` where the folder cannot be written.
    """
    markdown, sheet, as_json = files = [out / name for name in ("compare.md", "compare.csv", "compare.json")]
    records, sections, paths = add_published(rows(groups), groups), by_data_set(groups), list[Path]()
    text = "# Error across depths\n"
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, members in sections.items():
            stem = "compare" if len(sections) == 1 else f"compare-{safe_text(name)}"
            paths += _draw(members, out, stem, output, with_loss)
            text += f"\n## {name}\n" if len(sections) > 1 else ""
            text += f"\n{_markdown(members, stem, output.formats[0], with_loss)}"
        markdown.write_text(text, "utf-8", "surrogateescape")
        with sheet.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.DictWriter(file, records[0].keys())
            writer.writeheader()
            writer.writerows(records)
        as_json.write_text(json.dumps(records, indent=2) + "\n", "utf-8")
    except OSError as error:
        raise BadInput(f"--out: cannot write {out}: {error.strerror or error}") from None
    return [*paths, *files]


def _draw(groups: Sequence[Group], out: Path, stem: str, output: Output, with_loss: bool) -> list[Path]:
    """Draw the figures of one data set."""
    at = at_best(groups)
    paths = figures.draw_curves(at, out / f"{stem}.png", output)
    paths += figures.draw_costs(at, out / f"{stem}-cost.png", output)
    if with_loss:
        paths += draw_loss(at, out / f"{stem}-loss.png", output)
    if swept_keys(groups):
        paths += sweep_figure.draw_sweeps(groups, out / f"{stem}-sweep.png", output)
    return paths


def table(groups: Sequence[Group], best: str = "* {}") -> list[list[str]]:
    """All columns of a comparison, the first row of headings. The best values of a sweep are set into `best`."""
    records = rows(groups)
    errors, keys = _with_medians(error_columns(records[0]), records), swept_keys(groups)
    lines = [["network", *keys, "depth", "seeds", "step", *errors.values(), *_COSTS]]
    for row in records:
        cells = [row["network"], *_values(row, keys, best), str(row["depth"]), str(row["seeds"]), _step(row)]
        lines.append([*cells, *_errors(row, errors), *_costs(row)])
    return lines


def markdown_texts(groups: Sequence[Group]) -> dict[str, str]:
    """The comparison without its figures: `findings` with the errors and, where a source reports some, `published`."""
    found, lines = published(groups), table(groups, best="**{}**")
    shown = [i for i, name in enumerate(lines[0]) if name not in ("depth", "step", *_COSTS) and "best" not in name]
    errors = _markdown_table([[line[i] for i in shown] for line in lines])
    sentences = [f"- {line}" for line in [*findings(groups), *warnings(groups)]]
    texts = {"findings": "\n".join([*sentences, "", *errors, "", "Errors in percent."])}
    if found:
        about = [f"- {line}" for line in reasons(found)]
        texts["published"] = "\n".join([*_markdown_table(published_rows(found)), "", *about])
    return texts


def _markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    headings, *body = rows
    return [
        f"| {' | '.join(headings)} |",
        f"| --- {'| ---: ' * (len(headings) - 1)}|",
        *(f"| {' | '.join(cells)} |" for cells in body),
    ]


def _markdown(groups: Sequence[Group], stem: str, suffix: str, with_loss: bool) -> str:
    keys = swept_keys(groups)
    lines = [f"![error across depths]({stem}.{suffix})", ""]
    lines += [f"![error against cost]({stem}-cost.{suffix})", ""]
    lines += [f"![training loss]({stem}-loss.{suffix})", ""] if with_loss else []
    if keys:
        lines += [f"![error against {' and '.join(keys)}]({stem}-sweep.{suffix})", ""]
    lines += _markdown_table(table(groups, best="**{}**"))
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
