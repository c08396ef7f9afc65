"""`resnet-train summary`: the stages of networks, and their costs beside a reference."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Program = Callable[..., tuple[int, str, str]]


def test_stages_add_up_to_the_network(program: Program) -> None:
    code, out, _ = program("summary", "resnet-50", "cifar-plain-20", "--json")
    records = json.loads(out)
    assert code == 0
    assert [(net["params"], net["macs"], net["depth"]) for net in records] == [
        (25557032, 3857973248, 50),
        (269722, 40551040, 20),
    ]
    assert sum(stage["macs"] for stage in records[0]["stages"]) == records[0]["macs"]
    assert records[0]["stages"][1]["shape"] == [256, 56, 56]
    assert "25,557,032" in program("summary", "resnet-50")[1]


@pytest.mark.parametrize(("network", "size"), [("vgg-16", 8), ("resnet-50", 10**10)])
@pytest.mark.parametrize("reference", [(), ("--vs", "resnet-18")])
def test_a_size_that_a_network_does_not_take_is_one_line(
    network: str, size: int, reference: tuple[str, ...], program: Program
) -> None:
    code, out, err = program("summary", network, "--size", size, *reference)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"does not take images of {size} x {size} pixels: " in err


def test_networks_are_compared_with_a_reference(program: Program) -> None:
    """He et al. 2015, section 3.3: 152 layers, still lower complexity than VGG-16 and VGG-19."""
    code, out, err = program("summary", "resnet-152", "resnet-50", "resnet-34", "--vs", "vgg-19")
    assert code == 0, err
    assert "resnet-152: 152 layers, lower complexity than vgg-19 (0.57 of its multiply-adds)" in out
    assert out.count("agrees") == 4
    assert "DIFFERS" not in out
    assert Path("summary.png").stat().st_size > 5000
    records = json.loads(program("summary", "resnet-152", "--vs", "vgg-19", "--size", 64, "--json")[1])
    assert [record["paper_macs"] for record in records] == [None, None]
    assert records[1]["memory_fp32"] == 2 * records[1]["memory_bf16"] == 8 * records[1]["activations"]
    assert program("summary", "resnet-18", "--out", "x.png")[0] == 2
    code, _, err = program("summary", "resnet-18", "--vs", "vgg-19", "--out", "x.foo")
    assert (code, err.startswith("resnet-train: --out: cannot write x.foo: ")) == (2, True)
    out = program("summary", "--vs", "plain-34", "resnet-34-A", "plain-34", "--out", "new/x.png")[1]
    assert "resnet-34-A: 34 layers, the complexity of plain-34 (1.00 of its multiply-adds)" in out
    assert out.count("\nplain-34") == 1  # the reference is no network beside itself
    assert Path("new/x.png").exists()
