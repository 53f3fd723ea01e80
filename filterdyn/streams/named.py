"""An online filter by its name: `module:object`, or a file."""

import contextlib
import importlib
import os
import sys
from typing import Any

import filterdyn as fd
from filterdyn.online.stepping_filter import SteppingFilter


def online_filter(argument: str, name: str, filter: str | None = None) -> SteppingFilter:
    """What `name` says: an `OnlineFilter`, a pair of a model and a filter, a model (with the name of a
    `filter`), or a function of nothing that returns one of them. The module is also looked for in
    the current folder; what it prints goes to the standard error. Or a file that `export` wrote.

    **Raises:** `ValueError` for a name of another form, `TypeError` for another object.
    """
    if os.path.isfile(name):
        return fd.load_exported(name)
    module, _, path = name.partition(":")
    if not module or not path:
        raise ValueError(
            f"{argument} is {name!r}; expected MODULE:OBJECT, such as plant:online, or a file "
            "that filterdyn.export wrote"
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    with contextlib.redirect_stdout(sys.stderr):
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
        if callable(found) and not isinstance(found, fd.StateSpaceModel):
            found = found()
    if isinstance(found, fd.StateSpaceModel):
        if filter not in fd.__all__ or not filter.endswith("Filter"):
            raise ValueError(
                f"{argument} {name} is a model alone, with the filter {filter!r}; expected the name of a "
                "filter, such as KalmanFilter"
            )
        found = (found, getattr(fd, filter)())
    if isinstance(found, tuple) and len(found) == 2:
        return fd.OnlineFilter(*found)
    if not isinstance(found, fd.OnlineFilter):
        raise TypeError(
            f"{argument} {name} is {type(found).__name__}; expected an OnlineFilter, a pair (model, "
            "filter), a model, or a function that returns one of them"
        )
    return found
