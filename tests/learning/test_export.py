"""What was learnt leaves the process: in files and in lines of JSON."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd
from filterdyn.streams.json_output import _result


def decay(p):
    return fd.StateSpaceModel(
        dist.Normal(jnp.array([2.0]), 0.5).to_event(1),
        fd.LinearSDE(-p["rate"] * jnp.eye(1), L=0.3),
        fd.LinearObservation(p["gains"][:, None], 0.05),
    )


PRIOR = dict(rate=dist.LogNormal(-0.5, 0.5), gains=dist.Normal(jnp.ones(2), 0.5).to_event(1))
MODEL = fd.ParametricModel(decay, PRIOR, evolution=fd.RandomWalk(0.01))


@pytest.mark.parametrize(
    "inner",
    [
        fd.ExtendedKalmanFilter(),
        pytest.param(fd.EnsembleKalmanFilter(10), marks=pytest.mark.slow),
    ],
    ids=["extended", "ensemble"],
)
def test_an_exported_filter_goes_on_learning_without_the_model(inner, tmp_path):
    online = fd.OnlineFilter(MODEL, fd.AugmentedFilter(inner), num_inputs=0)
    fd.export(online, tmp_path / "decay", platforms=("cpu",))
    exported = fd.load_exported(tmp_path / "decay")
    key = jax.random.key(4) if isinstance(inner, fd.EnsembleKalmanFilter) else None
    ours, theirs = online.init(0.0, key=key), exported.init(0.0, key=key)
    for t, y in ((0.5, [1.2, 1.4]), (1.0, [0.9, np.nan])):
        ours, step = online.step(ours, t, np.array(y))
        theirs, other = exported.step(theirs, t, np.array(y))
    for kind in ("mean", "sd"):
        for name in PRIOR:
            expected = getattr(step.parameters, kind)[name]
            np.testing.assert_allclose(getattr(other.parameters, kind)[name], expected, rtol=1e-6)
            # (The state of an ensemble has its draws; of a step only their moments are kept.)
            expected = getattr(ours.parameters, kind)[name]
            np.testing.assert_allclose(getattr(theirs.parameters, kind)[name], expected, rtol=1e-6)
    line = json.loads(json.dumps(_result(step)))
    assert line["parameters"].keys() == PRIOR.keys()
    np.testing.assert_allclose(
        line["parameters"]["gains"]["sd"], step.parameters.sd["gains"], rtol=1e-6
    )
    np.testing.assert_allclose(
        _result(other)["parameters"]["rate"]["mean"], line["parameters"]["rate"]["mean"], rtol=1e-6
    )


def test_a_filter_that_learns_nothing_says_nothing_of_parameters():
    online = fd.OnlineFilter(MODEL.at(MODEL.prior_mean), fd.KalmanFilter())
    state, step = online.step(online.init(0.0), 0.5, np.array([1.0, 1.0]))
    assert state.parameters is None and step.parameters is None
    assert "parameters" not in _result(step)
