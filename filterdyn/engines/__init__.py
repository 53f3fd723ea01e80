"""Adapters to engines that run filters of many keys on many machines, and bring their own machinery for
delivery, state and restarts."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from filterdyn.engines.keyed import KeyedFilter

if TYPE_CHECKING:
    from filterdyn.engines import kafka, spark

__all__ = ["KeyedFilter", "kafka", "spark"]

#: Each needs an extra.
_LAZY = ("kafka", "spark")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return import_module(f"filterdyn.engines.{name}")
    raise AttributeError(f"module 'filterdyn.engines' has no attribute {name!r}")
