"""The comparison, from run folders written by hand."""

import csv
import json
import math
import re
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import groups

from resnet_train.analysis import findings
from resnet_train.analysis.families import families
from resnet_train.analysis.groups import COLUMNS
from resnet_train.analysis.significance import differs_significantly
from resnet_train.errors import BadInput
from resnet_train.runs import run_folder

Program = Callable[..., tuple[int, str, str]]


def test_figures_are_means_and_deviations_over_seeds(recorded: Callable[..., Path], program: Program) -> None:
    for seed, clean in enumerate((3.0, 4.0, 8.0)):
        recorded("cifar-resnet-20", seed, clean)
    recorded("cifar-plain-56", 0, 60.0)
    code, out, err = program("compare", "runs", "--out", "out")
    assert code == 0, err
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "compare-cost.png",
        "compare.csv",
        "compare.json",
        "compare.md",
        "compare.png",
    ]
    plain, residual = csv.DictReader(Path("out/compare.csv").read_text().splitlines())
    assert tuple(plain) == COLUMNS
    assert (plain["network"], plain["depth"], plain["seeds"], plain["clean_train_error_std"]) == (
        "cifar-plain-56",
        "56",
        "1",
        "",
    )
    assert (residual["network"], residual["depth"], residual["seeds"]) == ("cifar-resnet-20", "20", "3")
    assert float(residual["clean_train_error"]) == 5.0
    assert float(residual["clean_train_error_std"]) == pytest.approx(statistics.stdev([3, 4, 8]))
    assert float(residual["train_error"]) == 7.0
    assert float(residual["val_error_top1"]) == 9.0
    assert float(residual["best_val_error_top1"]) == 8.5
    assert (float(residual["val_error_top1_median"]), plain["val_error_top1_median"]) == (8.0, "")
    assert "| 9.00 ± 2.65 | 8.00 |" in Path("out/compare.md").read_text()
    assert re.search(r"val top-1 +median .*\n.*60.00.* – .*\n.* 9.00 ± 2.65 +8.00 ", out)
    assert (float(residual["images_per_second"]), float(residual["hours"])) == (750.0, 0.2)
    assert "| cifar-resnet-20 | 20 | 3 | 20 | 7.00 ± 2.65 | 5.00 ± 2.65 |" in Path("out/compare.md").read_text()
    assert "cifar-resnet-20" in out
    assert json.loads(program("compare", "runs", "--json")[1])[0]["clean_train_error"] == 60.0
    assert Path("runs/compare.png").read_bytes()[:4] == b"\x89PNG"


def test_what_depth_did_is_read_off_the_figures(recorded: Callable[..., Path]) -> None:
    recorded("cifar-plain-20", 0, 5.0), recorded("cifar-plain-56", 0, 9.0)
    recorded("cifar-resnet-20", 0, 5.0), recorded("cifar-resnet-56", 0, 2.0)
    assert findings.findings(groups()) == [
        "plain: the deeper network's training error is higher: cifar-plain-56 9.00 %, cifar-plain-20 5.00 % (clean)",
        "residual: the deeper network's training error is lower: cifar-resnet-56 2.00 %, cifar-resnet-20 5.00 % (clean)",
        "56 layers: the residual network's training error is lower: cifar-resnet-56 2.00 %, cifar-plain-56 9.00 % (clean)",
    ]
    assert findings.warnings(groups()) == []
    recorded("cifar-resnet-56", 1, 7.0)  # 4.5 ± 3.5 against 5: no difference
    assert "residual: the deeper network's training error is not measurably different" in findings.findings(groups())[1]


@pytest.mark.parametrize("few", [0, 1, 5])
def test_of_a_single_seed_few_images_are_no_difference(few: int, recorded: Callable[..., Path]) -> None:
    """From as many wrong images on as Fisher's exact test (of 1 in 20) calls more than `few`, of scikit-learn's digits."""
    from scipy.stats import fisher_exact

    def verdict(wrong: int) -> str:
        shutil.rmtree("runs", ignore_errors=True)
        for depth, count in ((20, few), (56, wrong)):
            recorded(f"cifar-resnet-{depth}", 0, 100 * count / 1437, eval={"clean_train_images": 1437})
        [sentence] = findings.findings(groups())
        return sentence.split("error is ")[1].split(":")[0]

    for wrong in range(few, few + 15):
        by_chance = fisher_exact([[few, 1437 - few], [wrong, 1437 - wrong]]).pvalue
        assert verdict(wrong) == ("higher" if by_chance < 0.05 else "not measurably different"), wrong


def test_chance_is_that_of_the_images_an_error_is_of(recorded: Callable[..., Path]) -> None:
    recorded("cifar-resnet-20", 0, 5.0), recorded("cifar-resnet-56", 0, 10.0)
    assert "is higher: cifar-resnet-56 10.00 %" in findings.findings(groups())[0]
    replaced("clean_train_error_top1", "another")  # the running one is of 160 images
    assert (
        "is not measurably different: cifar-resnet-56 12.00 %, cifar-resnet-20 7.00 % (running)"
        in findings.findings(groups())[0]
    )
    replaced('"step": 10,', '"step": 0,')  # of 320
    assert "is higher" in findings.findings(groups())[0]
    replaced('"train_images": 50000', '"train_images": 160')  # each twice
    assert "is not measurably different" in findings.findings(groups())[0]
    metrics = recorded("cifar-resnet-56", 1, 9.0, status="diverged") / "metrics.jsonl"
    first, *_, last = metrics.read_text().splitlines()
    metrics.write_text(f"{first}\n{last}\n")  # before its first line of training, so of no images
    assert "is not measurably different" in findings.findings(groups())[0]


def test_running_errors_are_compared_where_one_network_has_no_clean_one(recorded: Callable[..., Path]) -> None:
    recorded("cifar-resnet-20", 0, 5.0)
    metrics = recorded("cifar-resnet-56", 0, 40.0) / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("clean_train_error_top1", "another"))
    sentence = "is higher: cifar-resnet-56 42.00 %, cifar-resnet-20 7.00 % (running)"
    assert sentence in findings.findings(groups())[0]


def replaced(old: str, new: str) -> None:
    """In the record of every run."""
    for path in Path("runs").rglob("metrics.jsonl"):
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize("shared", [True, False])
def test_several_seeds_are_compared_by_a_t_test(shared: bool, recorded: Callable[..., Path]) -> None:
    """Against scipy's own: paired where both networks have the same seeds, else Welch's. The images do not matter."""
    from scipy.stats import ttest_ind, ttest_rel

    for seeds in range(2, 6):
        for difference in (0.05, 0.2, 0.4, 0.8):
            shutil.rmtree("runs", ignore_errors=True)
            one = [5 + 0.1 * (-1) ** seed for seed in range(seeds)]
            other = [error + difference + 0.15 * math.sin(3 * seed) for seed, error in enumerate(one)]
            for name, errors, first in (("cifar-resnet-20", one, 0), ("cifar-resnet-56", other, 0 if shared else 1)):
                for seed, error in enumerate(errors, first):
                    recorded(name, seed, error, eval={"clean_train_images": 10})
            p = (ttest_rel(one, other) if shared else ttest_ind(one, other, equal_var=False)).pvalue
            verdict = "higher" if p < 0.05 else "not measurably different"
            assert f"is {verdict}" in findings.findings(groups())[0], (seeds, difference, p)


@pytest.mark.parametrize("first", [0, 1])
def test_seeds_that_differ_by_the_same_are_not_certain(first: int, recorded: Callable[..., Path]) -> None:
    """Ties are common where there are few images: two of 10,000 are no difference, and 200 are one."""
    for name, error, seeds in (("cifar-resnet-20", 5.0, (0, 1)), ("cifar-resnet-56", 5.02, (first, first + 1))):
        for seed in seeds:
            recorded(name, seed, error)
    recorded("cifar-resnet-110", first, 7.0), recorded("cifar-resnet-110", first + 1, 7.0)
    one, two, far = groups()
    assert not differs_significantly(one, two, "clean_train_error")
    assert differs_significantly(one, far, "clean_train_error")


def test_variances_of_two_networks_are_not_pooled(recorded: Callable[..., Path]) -> None:
    """Two seeds far apart against five close together: significant to Student's t-test, and not to Welch's."""
    from scipy.stats import ttest_ind

    one, other = [5.0, 5.01, 4.99, 5.0, 5.02], [5.6, 6.2]
    assert ttest_ind(one, other).pvalue < 0.05 < ttest_ind(one, other, equal_var=False).pvalue
    for name, errors in (("cifar-resnet-20", one), ("cifar-resnet-56", other)):
        for seed, error in enumerate(errors):
            recorded(name, seed, error)
    assert "is not measurably different" in findings.findings(groups())[0]


def test_equal_errors_of_all_seeds_have_no_variance(recorded: Callable[..., Path]) -> None:
    """A t-test divides by the variance, which is 0 where every seed reaches an error of 0."""
    for seed in range(2):
        recorded("cifar-resnet-20", seed, 0.0), recorded("cifar-resnet-56", seed, 0.0)
        recorded("cifar-resnet-32", seed + 1, 7.0), recorded("cifar-resnet-110", seed, 0.5)
    by_name = {group.label: group for group in groups()}

    def differ(one: str, other: str) -> bool:
        error = "clean_train_error"
        return differs_significantly(by_name[f"cifar-resnet-{one}"], by_name[f"cifar-resnet-{other}"], error)

    assert not differ("20", "56")
    assert differ("20", "32")
    assert differ("20", "110")


def test_a_single_seed_among_several_is_compared_by_the_images_too(recorded: Callable[..., Path]) -> None:
    for seed in (0, 1):
        recorded("cifar-resnet-20", seed, 5.0 + seed / 10, eval={"clean_train_images": 10})
    recorded("cifar-resnet-56", 0, 9.0, eval={"clean_train_images": 10})
    assert "is not measurably different" in findings.findings(groups())[0]
    for path in Path("runs").rglob("config.yaml"):
        path.write_text(path.read_text().replace("clean_train_images: 10", "clean_train_images: 10000"))
    assert "is higher" in findings.findings(groups())[0]
    recorded("cifar-resnet-20", 2, 7.0)  # 5.7 ± 1.1: 9 may be another seed
    assert "is not measurably different" in findings.findings(groups())[0]


def test_a_run_is_counted_once(recorded: Callable[..., Path], program: Program) -> None:
    folder = recorded("cifar-resnet-20", 0, 5.0)
    code, out, _ = program("compare", "runs", folder, "--json", "--out", "out")
    assert (code, json.loads(out)[0]["seeds"]) == (0, 1)
    shutil.copytree(folder, "elsewhere")
    code, _, err = program("compare", "runs", "elsewhere")
    assert (code, f"{folder} and elsewhere are runs of one network and seed: leave one out" in err) == (2, True)


def test_differences_beyond_the_network_are_listed(recorded: Callable[..., Path]) -> None:
    recorded("cifar-plain-20", 0, 5.0)
    recorded("cifar-resnet-20", 0, 5.0, optimizer={"lr": 0.2}, data={"size": 16}, train={"device": "auto"})
    recorded("cifar-resnet-32", 0, 5.0, status=None)
    recorded("cifar-resnet-44", 0, 5.0, status="diverged")
    sentence = findings.warnings(groups())
    assert sentence == [
        "not only the network differs: data.size = 8, optimizer.lr = 0.1 (cifar-plain-20, cifar-resnet-32, "
        "cifar-resnet-44); data.size = 16, optimizer.lr = 0.2 (cifar-resnet-20)",
        "cifar-resnet-32 seed 0 is not finished: step 20 of 20",
        "cifar-resnet-44 seed 0 diverged at step 20 of 20; cifar-resnet-44 is compared at step 20, before that",
    ]


def test_what_holds_for_many_networks_is_one_sentence(recorded: Callable[..., Path]) -> None:
    for depth in range(8, 80, 6):
        recorded(f"cifar-plain-{depth}", 0, 5.0, status=None)
        recorded(f"cifar-resnet-{depth}", 0, 5.0, status="diverged", optimizer={"lr": 0.2})
    assert findings.warnings(groups()) == [
        "not only the network differs: optimizer.lr = 0.1 (cifar-plain-8, cifar-plain-14, cifar-plain-20 and 9 others); "
        "0.2 (cifar-resnet-8, cifar-resnet-14, cifar-resnet-20 and 9 others)",
        "12 runs are not finished: cifar-plain-8 seed 0 (step 20 of 20), cifar-plain-14 seed 0 (step 20 of 20), "
        "cifar-plain-20 seed 0 (step 20 of 20) and 9 others",
        "12 runs diverged: cifar-resnet-8 seed 0 (step 20 of 20), cifar-resnet-14 seed 0 (step 20 of 20), "
        "cifar-resnet-20 seed 0 (step 20 of 20) and 9 others",
    ]
    for seed in range(1, 5):
        path = recorded("cifar-plain-8", seed, 5.0) / "metrics.jsonl"
        path.write_text("".join(f"{line}\n" for line in path.read_text().splitlines() if '"eval"' not in line))
    assert findings.warnings(groups())[-1] == (
        "4 runs are left out of the figures of their networks, as they have no evaluation: cifar-plain-8 seed 1, "
        "cifar-plain-8 seed 2, cifar-plain-8 seed 3, cifar-plain-8 seed 4"
    )


def test_experiments_that_differ_are_named_in_place_of_their_networks(recorded: Callable[..., Path]) -> None:
    for depth in (20, 32):
        recorded(f"cifar-resnet-{depth}", 0, 5.0)
        recorded(f"cifar-resnet-{depth}", 0, 5.0, name="other", train={"batch_size": 4}, optimizer={"lr": 0.2})
    recorded("cifar-resnet-44", 0, 5.0)
    assert findings.warnings(groups()) == [
        "not only the network differs: optimizer.lr = 0.2, train.batch_size = 4 (all of other); "
        "optimizer.lr = 0.1, train.batch_size = 16 (all of tiny)"
    ]
    schedule = {"kind": "cosine", "warmup": {"epochs": 5}}
    optimizer = {"lr": 0.2, "nesterov": True, "weight_decay": 0.5, "momentum": 0.5, "decay_on": "matrices"}
    recorded("cifar-resnet-44", 0, 5.0, name="other", schedule=schedule, optimizer=optimizer, train={"batch_size": 4})
    [line] = [line for line in findings.warnings(groups()) if "others (other/cifar-resnet-44)" in line]
    assert line.count(" = ") == 10  # of more keys, five are listed for each value


def test_each_data_set_has_its_table_and_figures(recorded: Callable[..., Path], program: Program) -> None:
    """Errors on different data are not set against each other, nor are the settings of their recipes."""
    for depth in (20, 56):
        recorded(f"cifar-plain-{depth}", 0, 5.0 + depth)
        folder = {"kind": "imagefolder", "path": "/data/my cats", "size": None, "train_size": None, "val_size": None}
        folder |= {"classes": None}
        crop = {"crop": {"kind": "random-resized", "size": 64, "pad": None}}
        recorded(f"resnet-{depth // 20 * 16 + 2}", 0, 5.0, name="photos", data=folder, augment=crop)
    code, out, err = program("compare", "runs", "--out", "out")
    assert code == 0, err
    first, second = out.split("\n\n\n")
    assert "\nsynthetic: tiny\nnetwork  " in first
    assert second.startswith("my cats: photos\nnetwork  ")
    assert [line.split()[0] for line in second.splitlines()[2:4]] == ["resnet-18", "resnet-34"]  # without photos/
    assert "not only the network differs" not in out
    assert "cifar-plain-56 61.00 %, cifar-plain-20 25.00 % (clean)" in first
    pictures = sorted(path.name for path in Path("out").glob("*.png"))
    assert pictures[2:] == ["compare-synthetic-cost.png", "compare-synthetic.png"]
    assert pictures[0].startswith("compare-my-cats-")  # no space, which a link could not have
    text = Path("out/compare.md").read_text()
    assert re.findall(r"^##? .*", text, re.M) == ["# Error across depths", "## synthetic", "## my cats"]
    assert all(f"({name})" in text for name in pictures)
    table = csv.DictReader(Path("out/compare.csv").read_text().splitlines())
    assert sorted(row["network"] for row in table) == [
        "photos/resnet-18",
        "photos/resnet-34",
        "tiny/cifar-plain-20",
        "tiny/cifar-plain-56",
    ]


@pytest.mark.parametrize("width", [80, 120])
def test_nothing_is_wider_than_the_terminal(
    width: int, recorded: Callable[..., Path], program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = {"source": "He et al. 2015, table 6", "val_images": 10_000, "val_error_top1": {"cifar-resnet-20": 8.75}}
    for seed in range(3):
        recorded("cifar-plain-20", seed, 5.0 + seed)
        recorded("cifar-resnet-20", seed, 5.0, expect=[entry])
        name = "a-network-with-a-name-that-says-all-there-is-to-say-of-it-and-more"
        recorded({"base": "cifar-resnet-56", "name": name}, seed, 5.0, optimizer={"lr": 0.2}, name="another")
    wide = program("compare", "runs")[1]
    monkeypatch.setattr("resnet_train.runtime.tables.terminal_width", lambda: width)
    code, out, err = program("compare", "runs")
    assert code == 0, err
    assert max(map(len, out.splitlines())) <= width < max(map(len, wide.splitlines()))
    for column in wide.splitlines()[2].split("  "):
        assert column.strip() in out
    assert "(1) He et al. 2015, table 6" in out
    assert " 5.00 %" in out
    rows = [line.split() for line in out.splitlines()]
    assert all(len(name) >= 20 for name, *_ in (row for row in rows if row and row[0].startswith("another/")))


def cut(folder: Path, step: int) -> None:
    """A run that has come to a step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [line for line in lines if line["step"] <= step and line["kind"] != "end"]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))


def test_runs_are_compared_at_the_last_evaluation_that_both_have(recorded: Callable[..., Path]) -> None:
    """The deeper network is better at every step; at step 10 its clean error is that of step 20 and 10 more."""
    recorded("cifar-resnet-20", 0, 5.0)
    deep = recorded("cifar-resnet-56", 0, 2.0)
    cut(deep, 10)
    assert findings.findings(groups()) == [
        "residual: the deeper network's training error is lower at step 10: "
        "cifar-resnet-56 12.00 %, cifar-resnet-20 15.00 % (clean)"
    ]
    assert findings.warnings(groups()) == [
        "the errors in tables and figures are of different steps: 20 (cifar-resnet-20); 10 (cifar-resnet-56)",
        "cifar-resnet-56 seed 0 is not finished: step 10 of 20",
    ]
    cut(deep, 0)
    assert groups()[0].label == "cifar-resnet-20"
    assert findings.findings(groups()) == []  # nothing yet


def test_before_an_evaluation_running_errors_are_compared_at_one_step(recorded: Callable[..., Path]) -> None:
    shallow, deep = recorded("cifar-resnet-20", 0, 5.0), recorded("cifar-resnet-56", 0, 2.0)
    for folder, step in ((shallow, 20), (deep, 10)):
        cut(folder, step)
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        (folder / "metrics.jsonl").write_text("\n".join(line for line in lines if '"eval"' not in line) + "\n")
    assert findings.findings(groups()) == [
        "residual: the deeper network's training error is not measurably different at step 10: "
        "cifar-resnet-56 14.00 %, cifar-resnet-20 17.00 % (running)"
    ]


def test_a_run_that_diverged_is_compared_at_its_last_evaluation(recorded: Callable[..., Path]) -> None:
    recorded("cifar-plain-20", 0, 5.0)
    deep = recorded("cifar-plain-56", 0, 2.0)
    cut(deep, 10)
    end = {"step": 14, "kind": "end", "status": "diverged", "seconds": 500.0, "time": 0.0}
    with (deep / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(end) + "\n")
    [sentence] = findings.findings(groups())
    assert "is lower at step 10: cifar-plain-56 12.00 %, cifar-plain-20 15.00 % (clean)" in sentence
    assert findings.warnings(groups())[-1] == (
        "cifar-plain-56 seed 0 diverged at step 14 of 20; cifar-plain-56 is compared at step 10, before that"
    )


def test_finished_runs_of_different_lengths_are_compared_at_their_ends(recorded: Callable[..., Path]) -> None:
    recorded("cifar-resnet-20", 0, 5.0)
    longer = recorded("cifar-resnet-56", 0, 2.0)
    path = longer / "metrics.jsonl"
    path.write_text(path.read_text().replace('"step": 20,', '"step": 40,').replace('"steps": 20,', '"steps": 40,'))
    assert findings.findings(groups()) == [
        "residual: the deeper network's training error is lower: "
        "cifar-resnet-56 2.00 % at step 40, cifar-resnet-20 5.00 % at step 20 (clean)"
    ]
    assert "different steps: 20 (cifar-resnet-20); 40 (cifar-resnet-56)" in findings.warnings(groups())[0]


def test_the_figures_of_a_network_are_of_one_step_for_all_seeds(recorded: Callable[..., Path]) -> None:
    recorded("cifar-resnet-20", 0, 5.0)
    cut(recorded("cifar-resnet-20", 1, 6.0), 10)
    [group] = groups()
    row = group.row()
    assert (row["step"], row["seeds"], row["clean_train_error"], row["train_error"]) == (10, 2, 15.5, 17.5)
    assert (row["best_val_error_top1"], row["hours"], row["images_per_second"]) == (9.0, 0.1, 500)
    begun = recorded("cifar-resnet-20", 2, 6.0)
    cut(begun, 10)
    lines = (begun / "metrics.jsonl").read_text().splitlines()
    (begun / "metrics.jsonl").write_text("\n".join(lines[:2]) + "\n")  # it has no evaluation yet
    [group] = groups()
    assert group.row() == row
    assert findings.warnings([group]) == [
        "cifar-resnet-20 seed 1 is not finished: step 10 of 20",
        "cifar-resnet-20 seed 2 is left out of the figures of its network: it has no evaluation yet",
    ]


def test_hours_are_those_of_training(recorded: Callable[..., Path]) -> None:
    """Half of a run's time may be probes and evaluations."""
    folder = recorded("cifar-resnet-20", 0, 5.0)
    path = folder / "metrics.jsonl"
    text = path.read_text()
    path.write_text(text.replace('"eval_seconds": 0.0', '"eval_seconds": 90.0'))
    row = groups()[0].row()
    assert (row["hours"], row["evaluation_hours"], row["probe_hours"]) == (0.15, 0.05, 0)
    path.write_text(text.replace(', "eval_seconds": 0.0', ""))
    row = groups()[0].row()
    assert (row["hours"], row["evaluation_hours"], row["probe_hours"]) == (None, None, 0)  # nobody knows


def test_depths_of_different_experiments_are_not_set_against_each_other(recorded: Callable[..., Path]) -> None:
    recorded("cifar-plain-20", 0, 5.0), recorded("cifar-plain-56", 0, 9.0, name="other")
    assert findings.findings(groups()) == []


def test_a_cheaper_network_that_outperforms_a_deeper_one_is_named(recorded: Callable[..., Path]) -> None:
    wide = {"base": "cifar-resnet-8", "name": "wide"}
    shallow, deep = recorded(wide, 0, 3.0), recorded("cifar-resnet-56", 0, 5.0)
    between = recorded("cifar-resnet-20", 0, 4.0)
    slower(deep), slower(between)
    sentence = "wide outperforms cifar-resnet-56: validation top-1 7.00 % against 9.00 % in 0.25 of its hours of training, 8 layers against 56"

    def lines() -> list[str]:
        return [line for line in findings.findings(groups()) if "outperforms" in line]

    assert lines() == []  # nobody knows on which machines
    made_on(shallow, "a"), made_on(deep, "b")
    assert lines() == []  # hours of two machines
    made_on(shallow, "a", "b")
    assert lines() == []  # and of one run on two machines
    (shallow / "env.json").write_text("")  # as a power cut may leave it
    assert lines() == []
    made_on(shallow, "b", "b")
    assert lines() == [sentence]
    made_on(between, "b")
    assert lines() == [sentence]  # of all such pairs the one that is widest apart in depth
    second = recorded("cifar-resnet-56", 1, 1.0)
    made_on(second, "b"), slower(second)
    assert not any("cifar-resnet-56" in line for line in lines())  # 7 ± 2.8 against 7
    shutil.rmtree(second)
    metrics = deep / "metrics.jsonl"
    finished = metrics.read_text()
    metrics.write_text(finished.replace("whole image", "ten crops"))
    assert not any("cifar-resnet-56" in line for line in lines())
    metrics.write_text(finished.replace('"finished"', '"diverged"'))
    assert not any("cifar-resnet-56" in line for line in lines())
    metrics.write_text(finished)
    assert lines() == [sentence]
    replaced('"val_images": 10000', '"val_images": 300')
    assert lines() == []


def made_on(folder: Path, *devices: str) -> None:
    sessions = [{"ranks": 1, "device": device, "torch": "2"} for device in devices]
    (folder / "env.json").write_text(json.dumps({"sessions": sessions}))


def slower(folder: Path) -> None:
    """The same run in four times the hours."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [{**record, "seconds": 4 * record.get("seconds", 0)} for record in lines]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in lines))


def test_figures_of_different_protocols_never_share_a_column(recorded: Callable[..., Path], program: Program) -> None:
    recorded("cifar-resnet-20", 0, 3.0), recorded("cifar-resnet-20", 1, 5.0), recorded("cifar-plain-20", 0, 9.0)
    path = Path("runs/tiny/cifar-resnet-20/seed-1/metrics.jsonl")
    path.write_text(path.read_text().replace("whole image", "ten crops"))
    code, out, err = program("compare", "runs")
    assert code == 0, err
    assert "clean train [1]" in out
    assert "median" not in out  # of two seeds it is the mean
    assert "val top-1 [1]" in out
    assert "val top-1 [2]" in out
    assert "[1] whole image\n[2] ten crops" in out
    table = list(csv.DictReader(Path("runs/compare.csv").read_text().splitlines()))
    assert [(row["val_error_top1 [1]"], row["val_error_top1 [2]"], row["protocol"]) for row in table] == [
        ("13.0", "", "whole image"),
        ("7.0", "", "whole image"),
        ("", "9.0", "ten crops"),
    ]
    assert [row["train_error"] for row in table] == ["11.0", "5.0", "7.0"]  # over augmented batches, under any protocol
    assert [row["clean_train_error [2]"] for row in table] == ["", "", "5.0"]
    assert {column.split(" [")[0].replace("_std", "") for column in table[0]} == {
        column.replace("_std", "") for column in (*COLUMNS, "protocol")
    }
    sentence = Path("runs/compare.md").read_text()
    assert "validation top-1 [2] |" in sentence
    assert "Validation protocol: [1] whole image; [2] ten crops." in sentence
    assert "| – |" in sentence
    lines = json.loads(program("compare", "runs", "--json")[1])
    assert [(row["val_error_top1 [1]"], row["val_error_top1 [2]"]) for row in lines] == [
        (13, None),
        (7, None),
        (None, 9),
    ]
    assert "0, 1 (cifar-resnet-20)" in findings.warnings(groups())[0]  # one network under two protocols


def test_depth_is_compared_under_one_protocol(recorded: Callable[..., Path]) -> None:
    """The clean training error is what the evaluation sees of training images."""
    recorded("cifar-plain-20", 0, 5.0)
    path = recorded("cifar-plain-56", 0, 9.0) / "metrics.jsonl"
    assert len(findings.findings(groups())) == 1
    path.write_text(path.read_text().replace("whole image", "ten crops"))
    assert findings.findings(groups()) == []


def test_experiments_are_not_pooled(recorded: Callable[..., Path]) -> None:
    recorded("cifar-resnet-20", 0, 5.0), recorded("cifar-resnet-20", 0, 7.0, name="other")
    assert [group.label for group in groups()] == ["other/cifar-resnet-20", "tiny/cifar-resnet-20"]


def test_folders_without_runs_are_named(tmp_path: Path, recorded: Callable[..., Path], program: Program) -> None:
    with pytest.raises(BadInput, match="no run folder in or under it"):
        run_folder.find([tmp_path / "nowhere"])
    folder = recorded("cifar-resnet-20", 0, 5.0)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([lines[0], "x", *lines[1:]]))
    code, _, err = program("compare", "runs")
    assert (code, "metrics.jsonl, line 2: not a record of a run: not JSON" in err) == (2, True)
    (folder / "metrics.jsonl").write_text(lines[0] + "\n" + lines[1][:20])
    assert "has a line of training" in program("compare", "runs")[2]


@pytest.mark.parametrize(
    ("networks", "expected"),
    [
        (
            ["plain-18", "plain-34", "resnet-18", "resnet-34", "resnet-50", "resnet-152", "vgg-16", "vgg-19"],
            {"plain": [18, 34], "residual": [18, 34, 50, 152], "VGG": [16, 19]},
        ),
        (
            ["resnet-34", "resnet-50-v1.5", "resnet-101-v1.5", "preact-resnet-50", "wrn-50-2", "vgg-16", "vgg-16-bn"],
            {
                "VGG": [16],
                "VGG (batch norm)": [16],
                "residual (widths 64/128/256/512)": [34, 50, 101],
                "residual (pre-activation)": [50],
                "residual (widths 128/256/512/1024)": [50],
            },
        ),
        (
            ["resnet-18", "resnet-50", "resnet-50-v1.5"],
            {"residual (stride on 1x1)": [18, 50], "residual (stride on 3x3)": [50]},
        ),
        (
            [
                "cifar-resnet-110",
                "cifar-resnet-164",
                "cifar-resnet-110-C",
                {"base": "cifar-resnet-20", "name": "gated", "addition": {"kind": "shortcut-gating", "bias": -6}},
                {"base": "cifar-resnet-56", "name": "full", "stem_width": 16},
            ],
            {
                "residual (basic, shortcut A)": [56, 110],
                "residual (bottleneck)": [164],
                "residual (basic, shortcut C)": [110],
                "residual (shortcut-gating bias -6)": [20],
            },
        ),
        (["wrn-16-4", "wrn-40-4", "wrn-40-4-dropout"], {"residual": [14, 38], "residual (dropout 0.3)": [38]}),
        (
            [
                {"base": "wrn-16-2", "name": "said-again", "kernels": [3, 3]},
                "wrn-40-2",
                {"base": "wrn-40-2", "name": "straight", "kernels": [1, 3, 1]},
                {"base": "wrn-40-2", "name": "one", "kernels": [3], "depths": [12, 12, 12]},
            ],
            {"residual": [14, 38], "residual (kernels 1/3/1)": [56], "residual (kernels 3)": [38]},
        ),
        (
            [
                "cifar-resnet-20",
                {"base": "cifar-resnet-56", "name": "dropped", "drop_path_rate": 0.5},
                {"base": "cifar-resnet-56", "name": "zero", "zero_init_residual": True},
            ],
            {"residual": [20], "residual (drop path rate 0.5)": [56], "residual (zero init residual)": [56]},
        ),
    ],
)
def test_a_family_differs_in_nothing_but_depth(
    networks: list[Any], expected: dict[str, list[int]], recorded: Callable[..., Path]
) -> None:
    for network in networks:
        recorded(network, 0, 5.0, data={"size": 32})
    found = families(groups())
    assert {family.name: [group.depth for group in family.members] for family in found} == expected
    sentence = [line for line in findings.findings(groups()) if "the deeper network's" in line]
    assert len(sentence) == sum(len(set(depths)) > 1 for depths in expected.values())
