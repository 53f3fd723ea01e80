"""Recordings: the numbers of the files, stand-ins of known systems, and errors where there is neither."""

import os
import sys
import types

import numpy as np
import pytest

from filterdyn import datasets

NAMES = ("cascaded_tanks", "emps", "silverbox")


@pytest.fixture
def nothing(monkeypatch):
    """Neither a folder nor the package that downloads."""
    monkeypatch.delenv("FILTERDYN_DATA", raising=False)
    monkeypatch.setitem(sys.modules, "nonlinear_benchmarks", None)


@pytest.mark.parametrize("name", NAMES)
def test_without_files_an_error_says_where_they_are_looked_for(nothing, name):
    with pytest.raises(FileNotFoundError, match=f"{name}: the environment variable FILTERDYN_DATA"):
        getattr(datasets, name)()


@pytest.mark.parametrize("name", NAMES)
def test_a_stand_in_says_that_it_is_one_and_has_the_columns_of_the_real_record(nothing, name):
    found = getattr(datasets, name)(stand_in=True)
    assert not found.real
    for one in (found.train, *found.tests.values()):
        assert one.dy == one.du == 1 and len(one) > 10 * found.burn_in
        assert one.input_names == found.train.input_names


def test_force_of_the_simulated_drive_accelerates_its_mass(nothing):
    series = datasets.emps(stand_in=True).train
    force, position = (np.asarray(a)[:, 0] for a in (series.inputs, series.observations))
    # Momentum from start to end, by finite differences over 20 ms, is the impulse less that of friction.
    speed = (position[20:] - position[:-20]) / 0.02
    friction = 200 * speed + 20 * np.sign(speed) - 3.0
    push = np.convolve(force, np.ones(20) / 20, "valid")[: len(speed)] - friction
    moved = 95.0 * (speed[2000:] - speed[:-2000])
    impulse = np.array([push[k : k + 2000].sum() * 1e-3 for k in range(len(moved))])
    assert np.corrcoef(moved, impulse)[0, 1] > 0.99
    slope = (moved @ impulse) / (impulse @ impulse)
    assert slope == pytest.approx(1.0, abs=0.03)


def test_the_package_that_downloads_is_asked_where_there_is_no_folder(monkeypatch):
    monkeypatch.delenv("FILTERDYN_DATA", raising=False)
    record = types.SimpleNamespace(u=np.arange(30.0), y=np.ones(30))
    fake = types.SimpleNamespace(
        EMPS=lambda: (record, record),
        Cascaded_Tanks=lambda: (record, record),
        Silverbox=lambda: (record, (record, record, record)),
    )
    monkeypatch.setitem(sys.modules, "nonlinear_benchmarks", fake)
    drive = datasets.emps()
    assert drive.real and drive.tests.keys() == {"pulses"}
    np.testing.assert_allclose(drive.train.inputs[:, 0], 35.15065188248547 * record.u, rtol=1e-6)
    assert datasets.cascaded_tanks().real and len(datasets.silverbox().tests) == 3


@pytest.mark.skipif("FILTERDYN_DATA" not in os.environ, reason="FILTERDYN_DATA names no folder")
def test_the_real_records_have_the_published_lengths_and_spreads():
    lengths = {n: len(getattr(datasets, n)().train) for n in NAMES}
    assert lengths == {"cascaded_tanks": 1024, "emps": 24841, "silverbox": 65062}
    silverbox = datasets.silverbox().tests
    assert [len(s) for s in silverbox.values()] == [21688, 40475, 32000]
    spread = np.std(np.asarray(datasets.emps().tests["pulses"].observations))
    assert spread == pytest.approx(0.0827, abs=1e-4)
