"""Recordings of real systems that are read from files, and simulated stand-ins where there are none."""

import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from filterdyn.datasets.stand_ins import (
    simulated_cascaded_tanks,
    simulated_emps,
    simulated_silverbox,
)
from filterdyn.series import Series

_FOLDER = "FILTERDYN_DATA"
_FORCE_PER_VOLT = 35.15065188248547  # N/V
_SILVERBOX_RATE = 610.35  # Hz


@dataclass(frozen=True)
class Recordings:
    """A record to identify a system on, and others to test what was found.

    - `train`: a `filterdyn.Series`; `tests`: more of them, by name;
    - `burn_in`: how many rows at the start of a test may inform the state and are not scored;
    - `real`: were they measured? `False` for a simulated stand-in.
    """

    train: Series
    tests: dict[str, Series]
    burn_in: int
    real: bool


def _table(name: str, columns: tuple[int, ...]) -> list[np.ndarray]:
    """Columns of a file below the folder of recordings, without rows that are not numbers."""
    path = Path(os.environ[_FOLDER]) / name
    table = np.genfromtxt(path, delimiter=",", skip_header=1, usecols=columns)
    return list(table[~np.isnan(table).any(axis=1)].T)


def _has(*names: str) -> bool:
    folder = os.environ.get(_FOLDER, "")
    return folder != "" and all((Path(folder) / name).is_file() for name in names)


def _package() -> Any:
    try:
        return import_module("nonlinear_benchmarks")
    except ImportError:
        return None


def _absent(owner: str, names: tuple[str, ...]) -> FileNotFoundError:
    return FileNotFoundError(
        f"{owner}: the environment variable {_FOLDER} names {os.environ.get(_FOLDER)!r}; expected a "
        f"folder with {', '.join(names)}, or the package nonlinear_benchmarks, which downloads them. "
        f"{owner}(stand_in=True) takes simulated records where there are none"
    )


def _series(u: Any, y: Any, step: float, names: tuple[str, str]) -> Series:
    u, y = np.asarray(u, float).reshape(-1), np.asarray(y, float).reshape(-1)
    times = step * np.arange(len(y))
    return Series(times, y, u, input_names=names[:1], observation_names=names[1:])


def emps(*, stand_in: bool = False) -> Recordings:
    """A drive of a linear axis: motor force (N) in, position (m) out, at 1 kHz for 25 s, twice.

    The motor voltage is that of a position controller, times 35.15065 N/V. In the test, `pulses`, the
    controller has pulses of force to fight, which are part of the motor's force.

    **Arguments:** `stand_in`: without the files, take shorter records that are simulated.

    **Files:** `emps/train.csv` and `emps/test.csv` (t, qg, qm, vir) in the folder that the environment
    variable `FILTERDYN_DATA` names; else the package `nonlinear_benchmarks`. **Raises:**
    `FileNotFoundError` where there are none.

    **Reference:** A. Janot, M. Gautier, M. Brunot (2019). Data set and reference models of EMPS.
    *Workshop on Nonlinear System Identification Benchmarks*, Eindhoven.
    """
    files, names = ("emps/train.csv", "emps/test.csv"), ("force", "position")
    pairs: list[Any]
    if _has(*files):
        pairs = [_table(name, (3, 2)) for name in files]
    elif package := _package():
        pairs = [(one.u, one.y) for one in package.EMPS()]
    elif stand_in:
        train, test = (_series(u, y, 1e-3, names) for u, y in simulated_emps())
        return Recordings(train, {"pulses": test}, 20, False)
    else:
        raise _absent("emps", files)
    train, test = (_series(_FORCE_PER_VOLT * u, y, 1e-3, names) for u, y in pairs)
    return Recordings(train, {"pulses": test}, 20, True)


def cascaded_tanks(*, stand_in: bool = False) -> Recordings:
    """Two tanks, one above the other: pump (V) in, level of the lower tank (V) out, every 4 s.

    The level of the upper tank is not measured, and it may overflow into the lower one and besides it.
    The sensor ends at 10 V. Two records of 1,024 rows.

    **Arguments:** `stand_in`: without the file, take shorter records that are simulated.

    **File:** `cascaded_tanks/dataBenchmark.csv` (uEst, uVal, yEst, yVal) in the folder that the
    environment variable `FILTERDYN_DATA` names; else the package `nonlinear_benchmarks`. **Raises:**
    `FileNotFoundError` where there is none.

    **Reference:** M. Schoukens, P. Mattsson, T. Wigren, J.-P. Noel (2016). Cascaded tanks benchmark
    combining soft and hard nonlinearities. *Workshop on Nonlinear System Identification Benchmarks*,
    Brussels.
    """
    pairs: list[Any]
    file, names = "cascaded_tanks/dataBenchmark.csv", ("pump", "level")
    if _has(file):
        u_train, u_test, y_train, y_test = _table(file, (0, 1, 2, 3))
        pairs, real = [(u_train, y_train), (u_test, y_test)], True
    elif package := _package():
        pairs, real = [(one.u, one.y) for one in package.Cascaded_Tanks()], True
    elif stand_in:
        pairs, real = simulated_cascaded_tanks(), False
    else:
        raise _absent("cascaded_tanks", (file,))
    train, test = (_series(u, y, 4.0, names) for u, y in pairs)
    return Recordings(train, {"test": test}, 5, real)


def silverbox(*, stand_in: bool = False) -> Recordings:
    """An electronic oscillator with a hardening spring: voltage in, voltage out, at 610.35 Hz.

    Trained on multisines, tested on another one, on an `arrow` whose amplitude grows beyond what was
    trained on, and on its first 32,000 rows, `arrow, no extrapolation`.

    **Arguments:** `stand_in`: without the files, take shorter records that are simulated.

    **Files:** `silverbox/train_multisine.csv`, `test_multisine.csv` and `test_arrow_full.csv` (u_V, y_V)
    in the folder that the environment variable `FILTERDYN_DATA` names; else the package
    `nonlinear_benchmarks`. **Raises:** `FileNotFoundError` where there are none.

    **Reference:** T. Wigren, J. Schoukens (2013). Three free data sets for development and benchmarking
    in nonlinear system identification. *European Control Conference*, Zurich.
    """
    files = tuple(
        f"silverbox/{name}.csv" for name in ("train_multisine", "test_multisine", "test_arrow_full")
    )
    pairs: list[Any]
    real = True
    if _has(*files):
        pairs = [_table(name, (0, 1)) for name in files]
    elif package := _package():
        train, tests = package.Silverbox()
        pairs = [(one.u, one.y) for one in (train, *tests[:2])]
    elif stand_in:
        pairs, real = simulated_silverbox(), False
    else:
        raise _absent("silverbox", files)
    step = 1.0 / _SILVERBOX_RATE
    train, multisine, arrow = (_series(u, y, step, ("u", "y")) for u, y in pairs)
    inside = arrow[: 32_000 * len(arrow) // 40_475]
    tests = {"multisine": multisine, "arrow": arrow, "arrow, no extrapolation": inside}
    return Recordings(train, tests, 50, real)
