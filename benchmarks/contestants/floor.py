"""The C floor: `floor/floor.c`, compiled for the sizes of the problem when it is asked for."""

import ctypes
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from contestants import Runs

PACKAGE = None
SOURCE = Path(__file__).parent.parent / "floor" / "floor.c"
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-shared", "-fPIC")


class NoCompilerError(ImportError):
    """There is nothing to compile the floor with."""


def _compiler():
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        if name and shutil.which(name):
            return name
    raise NoCompilerError("no C compiler found (set CC, or install gcc): the floor is left out")


def _compiled(dx, dy):
    sizes = (f"-DDX={dx}", f"-DDY={dy}")
    with tempfile.TemporaryDirectory() as folder:
        library = str(Path(folder) / f"floor_{dx}_{dy}.so")
        subprocess.run(
            (_compiler(), *_FLAGS, *sizes, str(SOURCE), "-o", library, "-lm"), check=True
        )
        loaded = ctypes.CDLL(library)
    loaded.log_likelihood.restype = loaded.gradient.restype = ctypes.c_double
    return loaded


def linear(problem):
    rows, dy = problem.ys.shape
    dx = len(problem.m0)
    library = _compiled(dx, dy)
    arrays = [np.ascontiguousarray(array, float) for array in problem]
    room = [np.empty((rows, dx)), np.empty((rows, dx, dx))]
    found = {name: np.empty_like(array) for name, array in problem.parameters.items()}
    pointers = lambda many: [ctypes.c_void_p(array.ctypes.data) for array in many]
    given = [*pointers(arrays), ctypes.c_long(rows)]
    asked = pointers([*room, *(found[name] for name in "FHQR")])

    def value():
        return library.log_likelihood(*given)

    def gradient():
        _keep_alive = arrays, room
        return library.gradient(*given, *asked), found

    return Runs(value, gradient)
