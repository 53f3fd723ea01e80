"""A step in a file: the numbers of the filter that it was, without the code of its model."""

import json
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd
from filterdyn.online.checkpoint import Reader, write
from filterdyn.online.exporting import KIND

PLANT = """
    import jax.numpy as jnp
    import numpyro.distributions as dist
    import filterdyn as fd

    swing = fd.SDE(
        lambda t, x, u: jnp.array([x[1], -9.81 * jnp.sin(x[0]) + u[0]]),
        jnp.array([0.0, 0.2]),
        dt=0.05,
        max_substeps=16,
    )
    start = dist.Normal(jnp.array([1.0, 0.0]), 0.3).to_event(1)
    model = fd.StateSpaceModel(start, swing, fd.LinearObservation([[1.0, 0.0]], 0.01))
"""
NAMES = ("mean", "cov", "innovation", "innovation_cov", "log_likelihood", "nis", "status")
#: Gaps of 1 to 15 steps, a second sensor at one instant, one that is too long.
ROWS = [
    (0.0, [1.02], [0.0]),
    (0.05, [0.97], None),
    (0.8, [np.nan], [0.5]),
    (0.8, [-0.4], None),
    (0.93, [-0.9], [-0.5]),
    (3.0, [0.5], None),
]


@pytest.fixture(scope="module")
def pendulum():
    names = {}
    exec(textwrap.dedent(PLANT), names)
    return fd.OnlineFilter(names["model"], fd.ExtendedKalmanFilter(), num_inputs=1)


@pytest.fixture(scope="module")
def path(pendulum, tmp_path_factory):
    file = tmp_path_factory.mktemp("export") / "pendulum.filterdyn"
    fd.export(pendulum, file)
    return file


@pytest.fixture(scope="module")
def exported(path):
    return fd.load_exported(path)


def results(filter, key=None, rows=ROWS):
    state, found = filter.init(0.0, rows[0][2], key=key), []
    for t, y, u in rows:
        state, step = filter.step(state, t, y, u)
        found.append([np.asarray(getattr(step, name)) for name in NAMES])
        found.append([np.asarray(getattr(state, name)) for name in ("mean", "cov", "status")])
        found[-1].append(np.asarray(state.log_likelihood))
    return found


def agree(found, expected, rtol=1e-12):
    for ours, theirs in zip(found, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)
            assert a.shape == b.shape and a.dtype == b.dtype


def tolerance():
    return 1e-12 if jax.config.jax_enable_x64 else 1e-5


def test_a_file_steps_as_the_filter_that_it_was(pendulum, exported):
    expected = results(pendulum)
    agree(results(exported), expected, tolerance())
    assert fd.Status(int(expected[-2][-1])) == fd.Status.SOLVER_OUT_OF_STEPS
    assert pendulum.compile_count == 1


def test_another_process_steps_without_the_code_of_the_model(pendulum, path):
    program = """
        import json, sys
        import numpy as np
        import jax
        jax.config.update("jax_enable_x64", {x64})
        import filterdyn as fd

        exported = fd.load_exported({path!r})
        state = exported.init(0.0, [0.0])
        for t, y, u in json.loads(sys.stdin.read()):
            state, step = exported.step(state, t, np.array(y, float), u)
            print(json.dumps([step.mean.tolist(), step.cov.tolist(), float(step.log_likelihood)]))
        try:
            import plant
        except ModuleNotFoundError:
            print("none")
    """
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent(program).format(path=str(path), x64=jax.config.jax_enable_x64),
        ],
        input=json.dumps([(t, [None if np.isnan(v) else v for v in y], u) for t, y, u in ROWS[:5]]),
        capture_output=True,
        text=True,
        cwd=path.parent,
    )
    *lines, last = done.stdout.splitlines() or [done.stderr]
    assert last == "none", done.stderr
    found = [[np.asarray(part) for part in json.loads(text)] for text in lines]
    expected = [[step[0], step[1], step[4]] for step in results(pendulum, rows=ROWS[:5])[::2]]
    for ours, theirs in zip(found, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=tolerance(), atol=tolerance())


@pytest.mark.slow
def test_random_filters_draw_the_same_numbers(tmp_path):
    model = fd.StateSpaceModel(
        dist.Normal(0.0, jnp.ones(2)).to_event(1),
        fd.LinearSDE([[0.0, 1.0], [-1.0, -0.3]], [[0.0], [0.5]]),
        fd.LinearObservation([[1.0, 0.0]], [[0.1]]),
    )
    online = fd.OnlineFilter(model, fd.EnsembleKalmanFilter(12))
    fd.export(online, tmp_path / "ensemble", num_inputs=0, platforms=["cpu"])
    exported, key = fd.load_exported(tmp_path / "ensemble"), jax.random.key(5)
    rows = [(t, y, None) for t, y, _ in ROWS]
    agree(results(exported, key, rows), results(online, key, rows), 1000 * tolerance())
    with pytest.raises(ValueError, match="`key`"):
        exported.init(0.0)
    with pytest.raises(ValueError, match="`u` is given"):
        exported.step(exported.init(0.0, key=key), 0.0, [1.0], [1.0])


def test_each_goes_on_from_what_the_other_saved(pendulum, exported, tmp_path):
    for one, other in ((pendulum, exported), (exported, pendulum)):
        state = one.step(one.init(0.0, [0.1]), 0.3, [1.0])[0]
        one.save(tmp_path / "state", state, position=7)
        loaded, position = other.load(tmp_path / "state")
        assert position == 7 and loaded.time == 0.3
        np.testing.assert_array_equal(loaded.mean, state.mean)
        np.testing.assert_allclose(
            other.predict_to(loaded, 0.6).mean, one.predict_to(state, 0.6).mean, rtol=tolerance()
        )


def test_wrong_arguments_are_refused(exported):
    state = exported.step(exported.init(0.0, [0.0]), 1e-3, [1.0])[0]
    for wrong, message in (
        (lambda: exported.init(np.nan), "`t0` is nan"),
        (lambda: exported.init(0.0, [1.0, 2.0]), "`u0` has shape"),
        (lambda: exported.step(state, 0.0, [1.0]), "before the last row"),
        (lambda: exported.step(state, 1.0, [1.0, 2.0]), "`y` has shape"),
        (lambda: exported.step(state, 1.0, [np.inf]), "`y` has entries that are infinite"),
        (lambda: exported.step(state, 1.0, [1.0], [np.nan]), "`u` has entries that are infinite"),
        (lambda: exported.step(exported.init(0.0), 0.0, [1.0]), "`u` is missing"),
        (lambda: exported.step(exported.init(0.0), 1.0, [1.0], [1.0]), "since `t0` is missing"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()


def calling(function):
    return fd.StateSpaceModel(
        dist.Normal(0.0, jnp.ones(1)).to_event(1),
        fd.LinearTransition(jnp.eye(1), jnp.eye(1)),
        fd.GaussianObservation(function, jnp.eye(1)),
    )


def test_a_model_that_calls_back_into_python_is_refused(tmp_path):
    def pure(t, x, u):
        return jax.pure_callback(
            np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="sequential"
        )

    def printing(t, x, u):
        jax.debug.print("x is {}", x[0])
        return x

    for function, filter in ((pure, fd.ParticleFilter(4)), (printing, fd.ExtendedKalmanFilter())):
        online = fd.OnlineFilter(calling(function), filter)
        for platforms in (("cpu",), ("cpu", "cuda")):
            with pytest.raises(ValueError, match="export: the model calls back into Python"):
                fd.export(online, tmp_path / "never", platforms=platforms)
    assert not (tmp_path / "never").exists()
    with pytest.raises(TypeError, match="`online` is StateSpaceModel"):
        fd.export(online.model, tmp_path / "never")


def changed(path, **facts):
    """The file with other facts, whole in itself."""
    reader = Reader(path, KIND, 2**30)
    arrays = {name: reader.array(name, None, np.uint8) for name in ("init", "step", "read")}
    arrays |= facts.pop("arrays", {})
    file = path.with_name("changed")
    write(file, KIND, arrays, reader.facts | facts, 1)
    return file


def test_files_that_cannot_run_here_say_what_to_do(path):
    newer = jax.export.maximum_supported_calling_convention_version + 1
    for facts, message in (
        (dict(export=2), "its export format is 2 and this filterdyn reads 1; export it again"),
        (dict(calling_convention=newer), f"calling convention is {newer} .*; upgrade jax"),
        (dict(calling_convention=1), "calling convention is 1 .*; export it again"),
        (dict(platforms=["tpu"]), "exported for tpu and this machine runs on cpu; export it with"),
        (dict(record=3), "its manifest is malformed"),
        (dict(arrays=dict(step=np.frombuffer(b"import os", np.uint8))), "`step` cannot be read"),
    ):
        if jax.default_backend() != "cpu" and "runs on cpu" in message:
            continue
        with pytest.raises(ValueError, match=f"is refused: .*{message}"):
            fd.load_exported(changed(path, **facts))
    if jax.config.jax_enable_x64:
        with jax.enable_x64(False), pytest.raises(ValueError, match=r"call numpyro.enable_x64\(\)"):
            fd.load_exported(path)


def test_a_damaged_file_is_refused(path):
    content, file = path.read_bytes(), path.with_name("damaged")
    rng = np.random.default_rng(0)
    for k in rng.integers(0, len(content), 40):
        bad = bytearray(content)
        bad[k] ^= 4
        file.write_bytes(bad if k % 2 else content[:k])
        with pytest.raises(ValueError, match="is refused: "):
            fd.load_exported(file)
