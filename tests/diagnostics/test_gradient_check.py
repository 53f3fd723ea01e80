"""What `gradient_check` says about gradients that are known."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd
from filterdyn.diagnostics import gradient_check


def make(p):
    return fd.StateSpaceModel(
        dist.Normal(0.0, 1.0).expand([1]).to_event(1),
        fd.LinearTransition(p["a"][None, None], jnp.array([[0.5]])),
        fd.LinearObservation([[1.0]], [[0.3]]),
    )


@pytest.fixture(scope="module")
def series():
    times = np.arange(15.0)
    y = fd.simulate(make({"a": jnp.array(0.8)}), times, key=jr.key(0)).observations
    return fd.Series(times, y)


def test_bias_and_error_are_those_of_the_replicates_and_the_least_error_is_recommended(series):
    filter = fd.ParticleFilter(100)
    found = gradient_check(
        make, series, filter, jr.key(1), 30, parameters={"a": 0.5}, modes=("affine",)
    )
    assert found.names == ("a",)
    exact = found.exact[0]
    step = 1e-5
    value = lambda a: float(fd.log_likelihood(make({"a": jnp.array(a)}), series, fd.KalmanFilter()))
    assert exact == pytest.approx((value(0.5 + step) - value(0.5 - step)) / (2 * step), rel=1e-5)
    affine = found.modes["affine"]
    assert affine.bias == pytest.approx(abs(affine.mean[0] - exact) / abs(exact))
    assert affine.bias < 0.05 + 4.5 * affine.bias_error
    assert affine.signal_to_noise == pytest.approx(abs(affine.mean[0]) / affine.sd[0])
    assert affine.error == pytest.approx(
        np.hypot(affine.bias, affine.sd[0] / abs(exact) * np.sqrt(29 / 30)), rel=1e-6
    )
    assert found.recommended == "affine"
    assert "gradient='affine'" in str(found) and "bias" in str(found)


@pytest.mark.slow
def test_without_an_exact_answer_the_least_noise_is_recommended(series):
    def nonlinear(p):
        return fd.StateSpaceModel(
            dist.Normal(0.0, 1.0).expand([1]).to_event(1),
            fd.Transition(lambda t, x, u: dist.Normal(p["a"] * x, 0.7).to_event(1)),
            fd.Observation(lambda t, x, u: dist.StudentT(4.0, x, 0.5).to_event(1)),
        )

    found = gradient_check(
        nonlinear, series, fd.ParticleFilter(50), jr.key(2), 10, parameters={"a": 0.3}
    )
    assert set(found.modes) == {"affine", "stop", "score"} and found.exact is None
    best = min(found.modes, key=lambda name: found.modes[name].sd[0])
    assert found.recommended == best


@pytest.mark.slow
def test_chaotic_dynamics_need_the_score():
    """The logistic map in its chaotic regime: a pathwise gradient explodes, the score does not."""

    def chaotic(p):
        move = lambda t, x, u: dist.Normal(p["r"] * x * (1 - x), 0.01).to_event(1)
        return fd.StateSpaceModel(
            dist.Normal(0.4, 0.05).expand([1]).to_event(1),
            fd.Transition(move),
            fd.Observation(lambda t, x, u: dist.Normal(x, 0.1).to_event(1)),
        )

    times = np.arange(60.0)
    y = fd.simulate(chaotic({"r": 3.7}), times, key=jr.key(3)).observations
    found = gradient_check(
        chaotic,
        fd.Series(times, y),
        fd.ParticleFilter(200, ess_threshold=0.1),
        jr.key(4),
        10,
        parameters={"r": 3.69},
        modes=("affine", "stop", "score"),
    )
    assert found.modes["score"].sd[0] < 0.1 * found.modes["stop"].sd[0]
    assert found.recommended == "score"
    assert "chaos" in found.advice


@pytest.mark.slow
def test_arrays_of_a_model_are_its_parameters(series):
    model = fd.StateSpaceModel(
        dist.Normal(jnp.zeros(1), jnp.ones(1)).to_event(1),
        fd.LinearTransition([[0.7]], [[0.5]]),
        fd.LinearObservation([[1.0]], [[0.3]]),
    )
    short = series[:3]
    found = gradient_check(model, short, fd.ParticleFilter(20), jr.key(5), 2, modes=("affine",))
    assert len(found.names) == len(found.exact) >= 6
    assert any("dynamics" in name and "F" in name for name in found.names)


def test_what_cannot_be_checked_is_refused(series):
    with pytest.raises(TypeError, match="ParticleFilter"):
        gradient_check(make, series, fd.KalmanFilter(), jr.key(0))
    with pytest.raises(ValueError, match="parameters"):
        gradient_check(make, series, fd.ParticleFilter(8), jr.key(0))
    with pytest.raises(ValueError, match="replicates"):
        gradient_check(make, series, fd.ParticleFilter(8), jr.key(0), 1, parameters={"a": 1.0})
