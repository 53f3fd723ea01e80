import os
from pathlib import Path

import numpy as np
import pytest

from filterdyn.datasets import lynx_hare, nile


def from_folder(name):
    """The file `name` of the folder FILTERDYN_DATA names, or a skipped test."""
    folder = os.environ.get("FILTERDYN_DATA")
    if folder is None:
        pytest.skip("FILTERDYN_DATA does not name a folder with the original files")
    path = Path(folder) / name
    if not path.exists():
        pytest.skip(f"{path} does not exist")
    return path


def assert_equal_in_float32(actual, expected):
    """The tests also run where JAX keeps single precision, in which 77.4 is not 77.4."""
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_lynx_hare_has_a_row_for_every_year_from_1900_to_1920():
    series = lynx_hare()
    assert len(series) == 21
    np.testing.assert_array_equal(series.times, np.arange(1900.0, 1921.0))


def test_lynx_hare_puts_the_prey_first():
    series = lynx_hare()
    assert series.observation_names == ("hare", "lynx")
    assert_equal_in_float32(series.observations[0], [30.0, 4.0])
    assert_equal_in_float32(series.observations[-1], [24.7, 8.6])


def test_lynx_hare_is_complete_and_without_inputs():
    series = lynx_hare()
    assert series.observations.shape == (21, 2)
    assert np.all(np.isfinite(series.observations))
    assert series.inputs is None


def test_lynx_hare_sums_to_the_pelts_of_the_table():
    assert_equal_in_float32(lynx_hare().observations.sum(axis=0), [715.7, 423.5])


def test_lynx_peak_in_the_year_after_the_hares_or_the_one_after_that():
    series = lynx_hare()
    hare, lynx = np.asarray(series.observations).T
    first, second = slice(0, 10), slice(10, 21)
    assert series.times[first][hare[first].argmax()] == 1903
    assert series.times[first][lynx[first].argmax()] == 1904
    assert series.times[second][hare[second].argmax()] == 1913
    assert series.times[second][lynx[second].argmax()] == 1915


def test_lynx_hare_equals_the_original_file():
    path = from_folder("lynx_hare/hudson-bay-lynx-hare.csv")
    year, lynx, hare = np.loadtxt(path, delimiter=",", skiprows=3, unpack=True)
    series = lynx_hare()
    np.testing.assert_array_equal(series.times, year)
    assert_equal_in_float32(series.observations, np.stack([hare, lynx], axis=1))


def test_nile_has_a_row_for_every_year_from_1871_to_1970():
    series = nile()
    assert len(series) == 100
    np.testing.assert_array_equal(series.times, np.arange(1871.0, 1971.0))


def test_nile_begins_and_ends_as_printed():
    series = nile()
    assert series.observation_names == ("flow",)
    np.testing.assert_array_equal(series.observations[:3, 0], [1120.0, 1160.0, 963.0])
    np.testing.assert_array_equal(series.observations[-3:, 0], [718.0, 714.0, 740.0])


def test_nile_is_complete_and_without_inputs():
    series = nile()
    assert series.observations.shape == (100, 1)
    assert np.all(np.isfinite(series.observations))
    assert series.inputs is None


def test_nile_has_the_published_mean_and_extremes():
    flow = np.asarray(nile().observations)[:, 0]
    assert flow.sum() == 91935.0
    assert (flow.min(), flow.max()) == (456.0, 1370.0)


def test_nile_drops_after_1898():
    series = nile()
    flow = np.asarray(series.observations, dtype=float)[:, 0]
    before = series.times < 1899
    assert flow[before].mean() == 1097.75
    np.testing.assert_allclose(flow[~before].mean(), 849.9722, atol=1e-4)


def test_nile_equals_the_original_file():
    path = from_folder("series/nile.csv")
    year, flow = np.loadtxt(path, delimiter=",", skiprows=1, unpack=True)
    series = nile()
    np.testing.assert_array_equal(series.times, year)
    np.testing.assert_array_equal(series.observations[:, 0], flow)
