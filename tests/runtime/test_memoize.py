"""Results that are kept with their object."""

from dataclasses import dataclass, replace

from resnet_train.runtime.memoize import memoized


@dataclass(frozen=True)
class Multiplier:
    factor: int
    calls: list[int]

    @memoized
    def times(self, number: int) -> int | None:
        self.calls.append(number)
        return self.factor * number or None


def test_each_result_is_computed_once_for_each_object() -> None:
    one = Multiplier(2, [])
    assert [one.times(3), one.times(0), one.times(3), one.times(0)] == [6, None, 6, None]
    assert one.calls == [3, 0]
    other = replace(one, factor=5)
    assert (other.times(3), one.times(3), one.calls) == (15, 6, [3, 0, 3])
    assert one == Multiplier(2, one.calls)
