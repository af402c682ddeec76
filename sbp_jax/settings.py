"""`configurable`: gin's, with every value checked against its annotation before it is used."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

import gin
import typeguard

from sbp_jax.errors import UserError


def configurable[T: Callable](target: T) -> T:
    """Makes a function or dataclass known to gin under its own name.

    Raises:
      UserError: (when it is called) an argument is not of the type that its annotation names.
    """
    if isinstance(target, type):
        target.__init__ = _checked(target.__init__, target.__name__, target)  # type: ignore[misc]
        return gin.configurable(target)
    return gin.configurable(_checked(target, target.__name__, target))


def _checked(function: Callable, name: str, annotated: Any) -> Callable:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args, **kwargs):
        expected = _annotations(annotated)
        for key, value in signature.bind_partial(*args, **kwargs).arguments.items():
            try:
                typeguard.check_type(
                    value,
                    expected.get(key, Any),
                    collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS,
                )
            except typeguard.TypeCheckError as error:
                wanted = inspect.formatannotation(expected[key]).replace("collections.abc.", "")
                raise UserError(f"{name}.{key} = {value!r}: expected {wanted}") from error
        return function(*args, **kwargs)

    call.__signature__ = signature  # type: ignore[attr-defined]  # by which gin knows the names
    return call


@functools.cache
def _annotations(annotated: Any) -> dict[str, Any]:
    return typing.get_type_hints(annotated)
