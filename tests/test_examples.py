"""The examples run as a user runs them, say that they worked, and leave their figures."""

import importlib.util
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import pytest

import filterdyn as fd

ROOT = Path(__file__).parent.parent
REFERENCE = Path(__file__).parent / "reference"
FIGURES = {
    "lynx_hare": {"lynx_hare_posterior_predictive", "lynx_hare_forecast", "lynx_hare_innovations"},
    "nile_level": {"nile_level", "nile_forecast"},
    "driven_oscillator": {
        "driven_oscillator_states",
        "driven_oscillator_posterior",
        "driven_oscillator_forecast",
    },
}
#: What examples have said and left: pytest may ask for one again.
FOUND = {}
#: Empty axes of these sizes make smaller files.
LEAST_BYTES = 15_000


def run(name, output, *options):
    """Run an example as a person would; what it printed, and its progress bar (which NumPyro leaves out
    under these two variables)."""
    automatic = ("CI", "PYTEST_XDIST_WORKER")
    environment = {k: v for k, v in os.environ.items() if k not in automatic}
    done = subprocess.run(
        [sys.executable, f"examples/{name}.py", "--output", str(output), *options],
        cwd=ROOT,
        env={**environment, "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout.splitlines(), done.stderr


def starting_with(lines, word):
    """The columns of the last line whose first word is `word`."""
    return [line.split() for line in lines if line.split()[:1] == [word]][-1]


def load(name):
    """An example as a module."""
    if not jax.config.jax_enable_x64:
        pytest.skip("the examples switch float64 on, for this whole process")
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=() if name == "lynx_hare" else pytest.mark.slow)
        for name in FIGURES
    ],
)
def quick(request, tmp_path_factory):
    """Every example once, with short chains."""
    if request.param not in FOUND:
        output = tmp_path_factory.mktemp(request.param)
        FOUND[request.param] = (output, *run(request.param, output, "--quick"))
    return request.param, *FOUND[request.param]


def test_last_line_says_that_it_worked(quick):
    _, _, lines, _ = quick
    assert lines[-1].startswith("OK: ")


def test_figures_are_there_and_not_empty(quick):
    name, output, _, _ = quick
    assert {path.name for path in output.iterdir()} == {f"{one}.png" for one in FIGURES[name]}
    for path in output.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > LEAST_BYTES, path.name


def test_long_part_has_a_progress_bar(quick):
    _, _, _, progress = quick
    assert "sample: 100%" in progress


@pytest.mark.long
@pytest.mark.slow
def test_lynx_hare_in_full_follows_every_year_and_agrees_with_the_published_rates(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines, _ = run("lynx_hare", tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert lines[-1].startswith("OK: ")
    # Two minutes on an idle machine; processor time does not count what else runs there.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 120

    series = fd.datasets.lynx_hare()
    for year, (hare, lynx) in zip(range(1900, 1921), series.observations, strict=True):
        row = starting_with(lines, str(year))
        assert row[1] == f"{hare:.1f}" and f"{lynx:.1f}" in row
    for year in ("1921", "1922", "1923"):
        assert len([x for x in starting_with(lines, year) if x != "to"]) == 11

    # The ODE model of posteriordb has the same rates. With process noise they may move, but not by
    # more than one of its posterior standard deviations (the run is deterministic: no false alarms).
    published = json.loads((REFERENCE / "posterior_lynx_hare_ode.json").read_text())["summary"]
    names = ("growth", "predation", "decline", "conversion")
    for i, name in enumerate(names):
        theirs = published[f"theta[{i + 1}]"]
        row = starting_with(lines, name)
        mean, _, low, high, r_hat, ess_bulk, ess_tail = map(float, row[-7:])
        assert abs(mean - theirs["mean"]) < theirs["sd"]
        assert low < theirs["mean"] < high
        assert r_hat < 1.01 and min(ess_bulk, ess_tail) > 400


@pytest.mark.slow
def test_neural_residual_learns_the_drag_from_noisy_angles(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines, _ = run("neural_residual", tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert lines[-1].startswith("OK: ")
    assert (tmp_path / "neural_residual.png").stat().st_size > LEAST_BYTES
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 120


@pytest.mark.slow
@pytest.mark.long
def test_pendulum_friction_knows_mass_length_and_friction_with_the_prior_and_less_without(tmp_path):
    lines, _ = run("pendulum_friction", tmp_path, "--quick")
    assert lines[-1].startswith("OK: 4 of 4 intervals hold the truth")
    free, orthogonal = (
        (float(line.split()[7].rstrip(",")), float(line.split()[5].rstrip(",")))
        for line in lines
        if line.strip().startswith("length: correlation")
    )
    assert free[0] < 1 and free[1] < -0.9  # the data know the sum only
    assert orthogonal[0] * 3 < free[0]
    for name in ("posterior", "predictive"):
        figure = tmp_path / f"pendulum_friction_{name}.png"
        assert figure.stat().st_size > LEAST_BYTES


@pytest.mark.slow
def test_streaming_emps_goes_on_with_the_same_numbers_after_it_was_killed(tmp_path):
    lines, told = run("streaming_emps", tmp_path, "--quick")
    assert lines[-1].startswith("OK: killed at row ")
    assert "the same numbers as without the kill: yes" in lines
    assert told.count("filterdyn stream: going on after ") == 1
    assert (tmp_path / "streaming_emps.png").stat().st_size > LEAST_BYTES


@pytest.mark.slow
def test_five_networks_trained_side_by_side_all_learn_the_spiral():
    spiral = load("spiral")
    models = eqx.filter_vmap(spiral.untrained)(jax.random.split(jax.random.key(0), 5))
    fitted = spiral.train(models, spiral.measured(0), 500)
    fields = fitted.models.dynamics.drift.value
    grid = np.linspace(0.0, spiral.SEEN, 151)
    truth = spiral.path(spiral.Truth(), grid)
    for i in range(5):
        field = jax.tree.map(lambda x, i=i: x[i] if eqx.is_array(x) else x, fields)
        assert np.mean((spiral.path(field, grid) - truth) ** 2) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cascaded_tanks", "emps", "silverbox", "spiral"])
def test_identification_runs_on_simulated_stand_ins(name, tmp_path, monkeypatch):
    monkeypatch.delenv("FILTERDYN_DATA", raising=False)
    lines, _ = run(name, tmp_path, "--quick")
    assert lines[-1].startswith("OK: ")
    assert name == "spiral" or "simulated" in lines[0]
    assert (tmp_path / f"{name}.png").stat().st_size > LEAST_BYTES


@pytest.mark.slow
def test_universal_lotka_volterra_finds_the_two_terms_and_no_others(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines, _ = run("universal_lotka_volterra", tmp_path, "--quick")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    told = lines[-1].partition(";")[0]
    assert told == "OK: found x y in dx/dt, x y in dy/dt"
    assert (tmp_path / "universal_lotka_volterra.png").stat().st_size > LEAST_BYTES
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 120


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "drifting_oscillator",
        "epidemic",
        pytest.param("emps_friction_change", marks=pytest.mark.long),
    ],
)
def test_parameters_that_move_are_followed(name, tmp_path, monkeypatch):
    monkeypatch.delenv("FILTERDYN_DATA", raising=False)
    lines, _ = run(name, tmp_path, "--quick")
    assert lines[-1].startswith("OK: ")
    assert (tmp_path / f"{name}.png").stat().st_size > LEAST_BYTES


@pytest.fixture(scope="module")
def nile():
    return load("nile_level")


def test_nile_evidence_is_that_of_the_quadrature(nile):
    exact = json.loads((REFERENCE / "nile_posterior.json").read_text())["log_evidence"]
    found = jax.jit(lambda: nile.log_evidence(nile.wandering, fd.datasets.nile(), 32))()
    assert float(found) == pytest.approx(exact, abs=1e-4)


def test_step_after_the_record_changes_no_evidence(nile):
    series = fd.datasets.nile()[:30]
    without = jax.jit(lambda: nile.log_evidence(nile.wandering, series, 4))()
    later = jax.jit(lambda: nile.log_evidence(lambda p: nile.stepping(p, 1990), series, 4))()
    assert float(later) == pytest.approx(float(without), rel=1e-12)


def test_coverage_of_evenly_spread_levels_is_nominal():
    lynx_hare = load("lynx_hare")
    levels = (jax.numpy.arange(100) + 0.5) / 100
    assert lynx_hare.coverage(levels, 0.5) == pytest.approx(0.5, abs=0.011)
    assert lynx_hare.coverage(levels, 0.9) == pytest.approx(0.9, abs=0.011)
    assert lynx_hare.is_honest(levels)
    assert not lynx_hare.is_honest(0.5 + 0.1 * (levels - 0.5))  # intervals much too wide
    assert not lynx_hare.is_honest(jax.numpy.round(levels))  # everything in the tails
