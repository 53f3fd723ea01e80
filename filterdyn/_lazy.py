"""Packages whose names are imported when they are first used (PEP 562)."""

import ast
import pkgutil
import sys
from importlib import import_module
from types import ModuleType
from typing import Any

import jax


class LazyPackage(ModuleType):
    """A package that imports what it offers on demand.

    The offer is what the `if TYPE_CHECKING:` block of its `__init__.py` imports, so that type
    checkers, readers and the interpreter go by one list. A submodule is found under its own name too,
    unless something that is offered has that name.
    """

    __all__: list[str]
    _offered: dict[str, tuple[str, str]]

    def __getattr__(self, name: str) -> Any:
        if name in self._offered:
            source, there = self._offered[name]
            value = _found(source, there)
        elif name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        else:
            value = _found(self.__name__, name)
        self.__dict__[name] = value
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # Importing a submodule binds it here, also where a function that it defines has its name.
        if not (isinstance(value, ModuleType) and name in self._offered):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*self.__dict__, *self._offered, *self.__all__})


def lazily(package: str) -> None:
    """Make a package that is being imported a `LazyPackage`; called at the end of its `__init__.py`."""
    source = pkgutil.get_data(package, "__init__.py")
    assert source is not None
    offered: dict[str, tuple[str, str]] = {}
    for block in ast.parse(source).body:
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            for line in block.body:
                assert isinstance(line, ast.ImportFrom) and line.module is not None
                if line.module != package:  # (submodules are found without being told)
                    offered |= {x.asname or x.name: (line.module, x.name) for x in line.names}
    module = sys.modules[package]
    module.__dict__["_offered"] = offered
    module.__class__ = LazyPackage


def _found(source: str, name: str) -> Any:
    """`from source import name`, of a name or a submodule."""
    # (The first use may be under a trace, of which nothing that a module computes must become a part.)
    with jax.ensure_compile_time_eval():
        return _imported(source, name)


def _imported(source: str, name: str) -> Any:
    module = import_module(source)
    if name in vars(module) or name in getattr(module, "_offered", ()):
        return getattr(module, name)
    whole = f"{source}.{name}"
    try:
        return import_module(whole)
    except ModuleNotFoundError as error:
        if error.name != whole:
            raise
        raise AttributeError(f"module {source!r} has no attribute {name!r}") from None
