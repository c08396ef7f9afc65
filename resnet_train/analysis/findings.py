"""What a comparison shows, in sentences: findings, and warnings of what stands in the way. No torch."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from resnet_train.analysis import sweeps
from resnet_train.analysis.families import families
from resnet_train.analysis.groups import Group
from resnet_train.analysis.significance import differs_significantly
from resnet_train.analysis.sweeps import at_best
from resnet_train.config.sweep import label as sweep_label
from resnet_train.config.sweep import value_text
from resnet_train.runs import run_folder
from resnet_train.runs.records import Record
from resnet_train.runs.run_folder import RunRecord
from resnet_train.runtime.tables import few

_MOST_RUNS = 3
"""Of more runs a warning is one sentence."""
_MOST_KEYS = 6
"""In one warning."""


def findings(groups: Sequence[Group]) -> list[str]:
    """A sentence for each finding.

    First, for each family, what depth did to the training error. Then what shortcuts did: residual against plain at
    the deepest depth that both have. Last, a network that is both cheaper and better than a deeper one. Of a sweep each
    network counts at its best value by the error that is compared; another sentence compares the two at equal values.

    Two finished networks are compared at their ends. Others are compared at the last step at which both have the error,
    which the sentence names; before there is one, it is left out. A difference counts only if it is significant.
    Networks of different experiments are not compared, since they differ in more than depth; nor are networks of
    different protocols, on which the clean training error depends.
    """
    clean = all(group.steps("clean_train_error") for group in groups if group.step is not None)
    all_families = families(at_best(groups, "clean_train_error" if clean else "train_error"))
    sentences = sweeps.findings(groups)
    for family in all_families:
        shallow, deep = family.members[0], family.members[-1]
        if shallow.depth != deep.depth:
            sentences += _training_error(f"{family.name}: the deeper network's", deep, shallow)
            sentences += _at_equal_values(deep, shallow, groups)
    for residual, plain in itertools.product(all_families, all_families):
        if (residual.kind, plain.kind) != ("residual", "plain") or _set(residual.members[0]) != _set(plain.members[0]):
            continue
        partners = {group.depth: group for group in plain.members}
        common = [group for group in residual.members if group.depth in partners]
        if common:
            deepest = common[-1]
            whose = f"{deepest.depth} layers: the {residual.name} network's"
            sentences += _training_error(whose, deepest, partners[deepest.depth])
            sentences += _at_equal_values(deepest, partners[deepest.depth], groups)
    comparable: dict[tuple[str, str], list[Group]] = {}
    for group in at_best(groups):
        comparable.setdefault(_set(group), []).append(group)
    return sentences + [sentence for members in comparable.values() for sentence in _cheaper_and_better(members)]


def _set(group: Group) -> tuple[str, str]:
    """Groups of one experiment and protocol can be compared."""
    return group.experiment, group.protocol


def _training_error(whose: str, one: Group, other: Group) -> list[str]:
    """A sentence that compares the training error of `one` with that of `other`. None where either has no figure.

    It is the clean error if both have it.
    """
    column, kind = _training_error_of_both(one, other)
    both_finished = one.is_finished and other.is_finished
    one, other, step = _at_one_step(one, other, column)
    error, other_error = one.mean(column), other.mean(column)
    if error is None or other_error is None:
        return []
    verdict = _verdict(one, other, column)
    if not both_finished:
        verdict += f" at step {step:,}"
    figures = (
        f"{group.label} {error:.2f} %" + (f" at step {group.step:,}" if one.step != other.step else "")
        for group, error in ((one, error), (other, other_error))
    )
    if keys := sweeps.swept_keys([one, other]):
        kind += f"; each at the {', '.join(keys)} where this error is lowest"
    return [f"{whose} training error is {verdict}: {', '.join(figures)} ({kind})"]


def _training_error_of_both(one: Group, other: Group) -> tuple[str, str]:
    """The training error that both have, the clean one if they can: its column, and its kind in words."""
    clean = all(group.steps("clean_train_error") for group in (one, other))
    return ("clean_train_error", "clean") if clean else ("train_error", "running")


def _at_one_step(one: Group, other: Group, column: str) -> tuple[Group, Group, int]:
    """Both as they are if they are finished, else as they were at the last step at which both have the error: that."""
    step = max(one.steps(column) & other.steps(column), default=0)
    return (one, other, step) if one.is_finished and other.is_finished else (one.at(step), other.at(step), step)


def _verdict(one: Group, other: Group, column: str) -> str:
    error, other_error = one.mean(column), other.mean(column)
    if error is None or other_error is None:
        return "not measured yet"
    if not differs_significantly(one, other, column):
        return "not measurably different"
    return "higher" if error > other_error else "lower"


def _at_equal_values(one: Group, other: Group, groups: Sequence[Group]) -> list[str]:
    """A sentence that compares the training errors of two networks at each value of their sweep."""
    all_one, all_other = (
        [group for group in groups if (group.name, _set(group)) == (of.name, _set(of))] for of in (one, other)
    )
    pairs = [(a, b) for a in all_one for b in all_other if a.sweep and a.sweep == b.sweep]
    values: dict[str, list[Group]] = {}
    for a, b in pairs:
        diverged = [group.name for group in (a, b) if group.has_diverged]
        verdict = f"{' and '.join(diverged)} diverged"
        if not diverged:
            column, _ = _training_error_of_both(a, b)
            verdict = _verdict(*_at_one_step(a, b, column)[:2], column)
        values.setdefault(verdict, []).append(a)
    verdicts = "; ".join(f"{verdict} at {_values(members)}" for verdict, members in values.items())
    if len(values) == 1 < len(pairs):
        verdicts = verdicts.replace(" at ", " at every one of ", 1)
    return [f"{one.name} against {other.name}, training error at equal values: {verdicts}"] if verdicts else []


def _values(groups: Sequence[Group]) -> str:
    """The values of a sweep in words, such as `optimizer.lr 0.05, 0.1`."""
    keys = sweeps.swept_keys(groups)
    if len(keys) == 1:
        return f"{keys[0]} {', '.join(value_text(group.sweep[keys[0]]) for group in groups)}"
    return "; ".join(sweep_label(group.sweep) for group in groups)


def _cheaper_and_better(groups: Sequence[Group]) -> list[str]:
    """A network that outperforms a deeper one in fewer hours on the same machine: the pair furthest apart in depth.

    The deeper one is residual. That a deep plain net fails is a finding of its own.
    """
    timed = [
        (group, row, machine)
        for group in groups
        if (machine := _single_machine(group)) and None not in ((row := group.row())["val_error_top1"], row["hours"])
    ]
    pairs: list[tuple[int, float, Group, Group, Record, Record]] = []
    for (one, row, machine), (deep, deep_row, deep_machine) in itertools.permutations(timed, 2):
        margin = deep_row["val_error_top1"] - row["val_error_top1"]
        candidate = one.depth < deep.depth and not deep.plain and machine == deep_machine
        better_and_cheaper = margin > 0 and row["hours"] < deep_row["hours"]
        if candidate and better_and_cheaper and differs_significantly(one, deep, "val_error_top1"):
            pairs.append((deep.depth - one.depth, margin, one, deep, row, deep_row))
    if not pairs:
        return []
    _, _, one, deep, row, deep_row = max(pairs, key=lambda pair: pair[:2])
    return [
        f"{one.label} outperforms {deep.label}: validation top-1 {row['val_error_top1']:.2f} % against "
        f"{deep_row['val_error_top1']:.2f} % in {row['hours'] / deep_row['hours']:.2f} of its hours of training, "
        f"{one.depth} layers against {deep.depth}"
        + ("" if one.step == deep.step else f", {one.step:,} steps against {deep.step:,}")
    ]


def _single_machine(group: Group) -> str | None:
    """The one machine on which all runs of a group were made and finished. `None` where hours are not comparable."""
    if not group.is_finished:
        return None
    machines = {machine for run in group.runs for machine in run.machines or (None,)}
    return machines.pop() if len(machines) == 1 else None


def warnings(groups: Sequence[Group]) -> list[str]:
    """What makes the comparison doubtful: other settings, other protocols, other steps, runs that are not finished.

    What holds for many networks is one sentence, which names the first of them.
    """
    runs = [run for group in groups for run in group.runs]
    return [
        *_differing_settings(groups, runs[0]),
        *_differing_conditions(groups),
        *_differing_validation_sets(runs),
        *_differing_steps(groups),
        *sweeps.warnings(groups),
        *_not_finished(groups),
        *_left_out(groups),
    ]


def _differing_settings(groups: Sequence[Group], first: RunRecord) -> list[str]:
    """Configuration keys, beside the network, in which runs differ, unless both were swept over them.

    Keys that set the same networks apart are one sentence.
    """
    keys: dict[str, None] = {}
    settings = {id(run): run_folder.defining_keys(run.run) for group in groups for run in group.runs}
    for group in groups:
        for run in group.runs:
            swept = ["network", "seed", "experiment", *(key for key in run.run.sweep if key in first.run.sweep)]
            for key, _, _ in run_folder.differences(first.run, run.run):
                if not any(key == name or key.startswith(f"{name}.") for name in swept):
                    keys[key] = None
    by_labels: dict[tuple[tuple[str, ...], ...], dict[str, list[str]]] = {}
    for key in keys:
        values: dict[str, dict[str, None]] = {}
        for group in groups:
            for run in group.runs:
                value = settings[id(run)].get(key)
                text = "not set" if value is None else value_text(value)
                values.setdefault("swept" if key in run.run.sweep else text, {})[group.label] = None
        by_labels.setdefault(tuple(map(tuple, values.values())), {})[key] = list(values)
    lines = []
    for labels, values_by_key in by_labels.items():
        parts = []
        for i, names in enumerate(labels):
            texts = [f"{key} = {values[i]}" for key, values in values_by_key.items()]
            if i and len(texts) == 1:
                texts = [next(iter(values_by_key.values()))[i]]
            parts.append(f"{few(texts, _MOST_KEYS)} ({_named(names, groups)})")
        lines.append(f"not only the network differs: {'; '.join(parts)}")
    return lines


def _named(labels: Sequence[str], groups: Sequence[Group]) -> str:
    """Names of networks; of all that an experiment among several has, its name."""
    experiments: dict[str, dict[str, None]] = {}
    for group in groups:
        experiments.setdefault(group.experiment, {})[group.label] = None
    names = dict.fromkeys(labels)
    for experiment, members in experiments.items():
        if len(experiments) > 1 and len(members) > 1 and names.keys() >= members.keys():
            names = {f"all of {experiment}": None} | {name: None for name in names if name not in members}
    return few(names)


def _differing_conditions(groups: Sequence[Group]) -> list[str]:
    """Training images, seeds and machines, where they are not the same for every network."""
    conditions: dict[str, Callable[[RunRecord], list[Any]]] = {
        "training images": lambda run: [run.records[0].get("train_images")],
        "seed": lambda run: [run.run.seed],
        "machine": lambda run: run.machines,
    }
    lines = []
    for condition, of_run in conditions.items():
        values: dict[str, set[Any]] = {}
        for group in groups:  # of one label there are several, under several protocols
            values.setdefault(group.label, set()).update(value for run in group.runs for value in of_run(run))
        labels: dict[str, list[str]] = {}
        for label, seen in values.items():
            labels.setdefault(", ".join(map(str, sorted(seen))) or "not recorded", []).append(label)
        if len(labels) > 1:
            text = "; ".join(f"{text} ({_named(names, groups)})" for text, names in labels.items())
            lines.append(f"not only the network differs: {condition} = {text}")
    return lines


def _differing_validation_sets(runs: Sequence[RunRecord]) -> list[str]:
    if len({run.records[0].get("val_images") for run in runs}) > 1:
        return ["validation errors are of different numbers of images: do not compare them"]
    return []


def _differing_steps(groups: Sequence[Group]) -> list[str]:
    labels: dict[int, list[str]] = {}
    for group in groups:
        if group.step is not None:
            labels.setdefault(group.step, []).append(group.label)
    if len(labels) < 2:
        return []
    steps = "; ".join(f"{step:,} ({_named(names, groups)})" for step, names in labels.items())
    return [f"the errors in tables and figures are of different steps: {steps}"]


def _not_finished(groups: Sequence[Group]) -> list[str]:
    """Runs that are not finished, or have diverged."""
    runs: dict[str, list[tuple[Group, RunRecord]]] = {}
    for group in groups:
        for run in group.runs:
            status = "not finished" if run.end is None else run.end["status"]
            if status != "finished":
                runs.setdefault(status, []).append((group, run))
    lines = []
    for status, members in runs.items():
        stopped = [f"step {run.records[-1]['step']:,} of {run.records[0]['steps']:,}" for _, run in members]
        if len(members) > _MOST_RUNS:
            names = few(f"{run.run.title} ({text})" for (_, run), text in zip(members, stopped, strict=True))
            lines.append(f"{len(members)} runs {'are ' * (status == 'not finished')}{status}: {names}")
            continue
        for (group, run), text in zip(members, stopped, strict=True):
            if status == "not finished":
                lines.append(f"{run.run.title} is not finished: {text}")
            else:
                then = "" if group.step is None else f"; {group.label} is compared at step {group.step:,}, before that"
                lines.append(f"{run.run.title} {status} at {text}{then}")
    return lines


def _left_out(groups: Sequence[Group]) -> list[str]:
    runs = [run for group in groups for run in group.left_out]
    if len(runs) > _MOST_RUNS:
        names = few(run.run.title for run in runs)
        return [f"{len(runs)} runs are left out of the figures of their networks, as they have no evaluation: {names}"]
    ends = ["yet" if run.end is None else f"and {run.end['status']} at step {run.end['step']:,}" for run in runs]
    return [
        f"{run.run.title} is left out of the figures of its network: it has no evaluation {end}"
        for run, end in zip(runs, ends, strict=True)
    ]
