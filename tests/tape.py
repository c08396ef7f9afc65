"""A tape of operators, in the place of a CUDA graph: what is recorded is repeated without Python's code between."""

from collections.abc import Callable
from typing import Any

import torch
from torch._C._distributed_c10d import Work
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from resnet_train.training.cuda_graph import Outputs


class Tape(TorchDispatchMode):
    """Keeps each operator with the tensors that it was called on; an answer comes to where it came the first time."""

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # int32: DistributedDataParallel's map of used weights, which is on the CPU in any case.
        waits = operator is torch.ops.aten._local_scalar_dense.default and args[0].dtype is not torch.int32
        assert not waits, "the step waits for the device"
        answer = operator(*args, **(kwargs or {}))
        self.calls.append((operator, args, kwargs or {}, answer))
        return answer

    def __init__(self, call: Callable[[], Outputs]) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []
        with self:
            self.answer = call()
        self.repeats = 0

    @torch.no_grad()
    def repeat(self) -> None:
        self.repeats += 1
        for operator, args, kwargs, answer in self.calls if self.repeats > 1 else []:  # a CUDA graph only records
            for old, new in zip(tree_leaves(answer), tree_leaves(operator(*args, **kwargs)), strict=True):
                if operator.namespace == "c10d" and isinstance(new, torch.ScriptObject):  # what has begun
                    Work.unbox(new).wait()
                elif isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def taped(call: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
    tape = Tape(call)
    return tape.repeat, tape.answer
