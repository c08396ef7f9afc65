"""Results that are kept with their object."""

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar, cast

_Object = TypeVar("_Object")
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def memoized(
    method: Callable[Concatenate[_Object, _Arguments], _Result],
) -> Callable[Concatenate[_Object, _Arguments], _Result]:
    """A method that computes each result once, for an object that never changes. Nobody may change the results."""
    results_name = f"_results_of_{method.__name__}"

    @functools.wraps(method)
    def call(self: _Object, *arguments: _Arguments.args, **named: _Arguments.kwargs) -> _Result:
        assert not named
        results: dict[tuple[object, ...], _Result] = self.__dict__.setdefault(results_name, {})
        if arguments not in results:
            results[arguments] = method(self, *arguments, **named)
        return results[arguments]

    return cast("Callable[Concatenate[_Object, _Arguments], _Result]", call)
