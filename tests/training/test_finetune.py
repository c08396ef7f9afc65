"""Fine-tuning: another run's weights, or another program's, where a run begins."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LAST, same_weights
from torch import Tensor

Program = Callable[..., tuple[int, str, str]]
Config = Callable[..., Path]


def weights(path: str, key: str = "net") -> dict[str, Tensor]:
    return torch.load(path, weights_only=True)[key]


NEW: dict[str, Any] = {"name": "new", "data": {"classes": 3}}
SOON = LAST.replace("tiny", "new").format("cifar-resnet-8")


def test_fine_tuning_starts_from_the_weights_and_a_new_head(
    config: Config, program: Program, tiny_run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    from resnet_train.runtime.distributed import World
    from resnet_train.training.finetune import load_initial_weights
    from resnet_train.training.step import create_train_state

    assert program("run", config(train={"steps": 2, "ema_decay": 0.5}))[0] == 0
    path = LAST.format("cifar-resnet-8")
    run = tiny_run(**NEW, train={"init_from": path, "ema_decay": 0.9})
    state, fresh = (create_train_state(run, 3, 3, World(torch.device("cpu"))) for _ in range(2))
    load_initial_weights(path, run.network, state, World(torch.device("cpu")))
    assert "has 4 classes, not 3: the head starts anew" in caplog.text
    assert state.ema is not None
    for key, value in weights(path, "ema").items():
        expected = fresh.net.state_dict()[key] if key.startswith("fc.") else value
        assert torch.equal(state.net.state_dict()[key], expected), key
        assert torch.equal(state.ema.state_dict()[key], expected), key


def test_a_fine_tuning_is_resumed_without_the_file_that_it_began_from(
    checkpoint: str, config: Config, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    from resnet_train.training import loop

    train = {"init_from": checkpoint, "steps": 6}
    assert program("run", config(**NEW, train=train))[0] == 0
    whole = Path(SOON).rename("whole.pt")
    step, calls = loop.train_step, []

    def dies(*arguments: Any) -> Any:
        calls.append(None)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return step(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_step", dies)
        assert program("run", config(**NEW, train=train), "--fresh")[0] == 130
    Path(checkpoint).unlink()
    code, _, err = program("run", config(**NEW, train=train))
    assert (code, "the head starts anew" in err) == (0, False)
    assert same_weights(whole, Path(SOON))
    code, _, err = program("run", config(**NEW, train={"steps": 6, "init_from": "other.pt"}))
    assert (code, f"with train.init_from = {checkpoint}, not other.pt" in err) == (2, True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"networks": [{"base": "cifar-resnet-8", "widths": [4, 8, 16]}]}, "widths is [4, 8, 8] there and [4, 8, 16]"),
        ({"networks": [{"base": "cifar-plain-8", "widths": [4, 8, 8]}]}, "shortcut is A there and none here"),
        ({"data": {"channels": 1}}, "conv1.weight is of shape [4, 3, 3, 3] there and of shape [4, 1, 3, 3] here"),
        ({"train": {"init_from": "none.pt"}}, "none.pt: no such checkpoint"),
        ({"train": {"init_from": 3}}, "train.init_from = 3: "),
        ({"train": {"init_form": "x.pt"}}, "train.init_form: unknown key; did you mean init_from?"),
    ],
)
def test_weights_of_another_network_are_refused(
    changes: dict[str, Any], message: str, checkpoint: str, config: Config, program: Program
) -> None:
    changes = {"name": "new", **changes, "train": {"init_from": checkpoint, **changes.get("train", {})}}
    code, _, err = program("run", config(**changes))
    assert (code, len(err.splitlines())) == (2, 1), err
    assert message in err


def test_torchvisions_weights_are_fine_tuned(config: Config, program: Program) -> None:
    from torchvision import models

    torch.save(models.resnet50(num_classes=7).state_dict(), "bare.pth")
    data = {"size": 32, "train_images": 8, "val_images": 2}
    train = {"init_from": "bare.pth", "steps": 1, "batch_size": 8}
    every = {"every": {"steps": 1}, "clean_train_images": 0}
    tuned = config(networks=["resnet-50-v1.5"], train=train, data=data, eval=every)
    code, _, err = program("run", tuned, "optimizer.lr=1e-9", "optimizer.weight_decay=0")
    assert (code, "bare.pth has 7 classes, not 4: the head starts anew" in err) == (0, True)
    now, then = weights(LAST.format("resnet-50-v1.5")), torch.load("bare.pth", weights_only=True)
    torch.testing.assert_close(now["layer4.2.conv3.weight"], then["layer4.2.conv3.weight"], rtol=1e-3, atol=1e-5)
    code, _, err = program("run", config(networks=["resnet-50"], train=train, data=data, eval=every))
    assert (code, "stride_on is 3x3 there and 1x1 here" in err) == (2, True)


def test_a_source_that_fits_one_network_of_several_is_refused_before_any_is_trained(
    checkpoint: str, config: Config, program: Program
) -> None:
    both = [{"base": "cifar-resnet-8", "widths": [4, 8, 8]}, {"base": "cifar-resnet-14", "widths": [4, 8, 8]}]
    new = config(name="new", networks=both, train={"init_from": checkpoint})
    for how in ((), ("--dry-run",)):
        code, _, err = program("run", new, *how)
        assert (code, "does not fit cifar-resnet-14: depths is [1, 1, 1] there and [2, 2, 2] here" in err) == (2, True)
    assert not Path("runs/new").exists()
    assert program("run", new, "--only", "cifar-resnet-8")[0] == 0
    Path(checkpoint).unlink()  # which a run that has begun needs no more
    assert program("run", new, "--only", "cifar-resnet-8", "--dry-run")[0] == 0
    assert "no such checkpoint" in program("run", new, "--only", "cifar-resnet-8", "--dry-run", "--fresh")[2]


def test_what_is_unset_is_what_it_stands_for(config: Config, program: Program) -> None:
    bottleneck = {"base": "cifar-resnet-11-bottleneck", "name": "net", "widths": [4, 8, 8]}
    dropped = bottleneck | {"drop_path_rate": 0.5, "zero_init_residual": True}  # as it was trained
    assert program("run", config(networks=[dropped], train={"steps": 1}))[0] == 0
    train = {"steps": 1, "init_from": LAST.format("net")}
    assert (
        program("run", config(name="new", networks=[bottleneck | {"expansion": 4, "stem_width": 4}], train=train))[0]
        == 0
    )
    code, _, err = program("run", config(name="other", networks=[bottleneck | {"expansion": 2}], train=train))
    assert (code, "expansion is 4 there and 2 here" in err) == (2, True)


def test_keys_of_initial_weights_have_no_effect_and_say_so(checkpoint: str, config: Config, program: Program) -> None:
    """Recipes that set them can be fine-tuned; what is said once is not said where nothing is lost."""
    base = {"base": "cifar-resnet-8", "stem": "cifar", "widths": [4, 8, 8]}
    train = {"init_from": checkpoint, "steps": 1}
    net = base | {"zero_init_residual": True, "init": "orthogonal"}
    code, _, err = program("run", config(name="new", networks=[net], train=train))
    line = f"init, zero_init_residual of cifar-resnet-8: no effect, the weights are those of {checkpoint}"
    assert (code, err.count(line)) == (0, 1), err
    assert "no effect" not in program("run", config(name="other", networks=[base], train=train))[2]
