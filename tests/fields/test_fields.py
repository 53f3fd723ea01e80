"""Vector fields: what they compute, what they keep, and that every filter takes them."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd

F = fd.fields
X64 = jax.config.jax_enable_x64
KEY = jr.key(3)
SLOW = pytest.mark.slow


def spiral(t, x, u):
    return jnp.array([x[1], -x[0]])


def every_field():
    """One of each, of two states and one input."""
    mlp = F.MLP(2, 1, key=KEY, width=4, depth=1, time=True)
    return {
        "MLP": mlp,
        "UniversalField": F.UniversalField(spiral, mlp),
        "SecondOrder": F.SecondOrder(F.MLP(2, 1, key=KEY, out=1, width=4, depth=1)),
        "Augmented": F.Augmented(mlp, 1, known=lambda t, z, u: -z),
        "Linear": F.Linear([[0.0, 1.0], [-1.0, -0.1]], [[0.0], [1.0]], [0.1, 0.2]),
        "LiquidTimeConstant": F.LiquidTimeConstant(mlp, [1.0, 2.0], [1.0, -1.0]),
        "Hamiltonian": F.Hamiltonian(F.Energy(2, key=KEY, width=4, depth=1)),
        "PortHamiltonian": F.PortHamiltonian(
            F.Energy(2, key=KEY, width=4, depth=1),
            [[0.0, 1.0], [0.0, 0.0]],
            [[0.0], [0.3]],
            [[0.0], [1.0]],
        ),
        "GradientFlow": F.GradientFlow(F.Energy(2, key=KEY, width=4, depth=1), [[1.0], [0.5]]),
        "Stable": F.Stable(mlp, F.Lyapunov(2, key=KEY, width=4, depth=1)),
    }


FIELDS = every_field()


def with_random_weights(field, key):
    """Weights of another size than at the start."""
    arrays, rest = eqx.partition(field, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(arrays)
    keys = jr.split(key, len(leaves))
    new = [
        leaf + 0.7 * jr.normal(k, leaf.shape, leaf.dtype)
        for leaf, k in zip(leaves, keys, strict=True)
    ]
    return eqx.combine(jax.tree.unflatten(structure, new), rest)


@pytest.mark.skipif(not X64, reason="the bound is that of float64")
def test_a_stable_field_decreases_its_lyapunov_function_everywhere():
    @eqx.filter_jit
    def worst(key, x):
        field = F.Stable(
            F.MLP(3, 1, key=KEY, width=16, depth=2), F.Lyapunov(3, key=KEY, width=16), 0.1
        )
        nominal = with_random_weights(field.nominal, key)
        field = F.Stable(
            eqx.tree_at(lambda f: f.output, nominal, field.nominal.output),
            with_random_weights(field.lyapunov, key),
            0.1,
        )
        decay = jax.vmap(lambda x: field.invariant(0.0, x, jnp.ones(1)).residual)(x)
        return decay.max(), jnp.linalg.norm(jax.vmap(lambda x: field(0.0, x, jnp.ones(1)))(x))

    for seed in range(5):
        x = 3 * jr.normal(jr.key(seed), (4000, 3))
        decay, size = worst(jr.key(100 + seed), x)
        assert decay <= 1e-10
        assert size > 1


def test_a_lyapunov_function_is_zero_at_the_origin_and_positive_and_convex_elsewhere():
    v = F.Lyapunov(2, key=KEY, width=8)
    a, b = 2 * jr.normal(jr.key(1), (2, 200, 2))
    at = jax.jit(jax.vmap(v))
    assert v(jnp.zeros(2)) == 0
    assert (at(a) > 0).all()
    # g is convex; V = s(g - g(0)) + |x|^2 too, because s does not fall.
    assert (at(0.5 * (a + b)) <= 0.5 * (at(a) + at(b)) + 1e-5).all()


def test_a_field_pushed_off_its_lyapunov_function_is_reported():
    class Broken(eqx.Module):
        inner: F.Stable

        def invariant(self, t, x, u):
            found = self.inner.invariant(t, x, u)
            return eqx.tree_at(lambda i: i.residual, found, found.residual + 1.0)

    x = jr.normal(KEY, (50, 2))
    fine = fd.diagnostics.check_invariant(FIELDS["Stable"], x, inputs=jnp.ones((50, 1)))
    broken = fd.diagnostics.check_invariant(Broken(FIELDS["Stable"]), x, inputs=jnp.ones((50, 1)))
    assert fine.holds and "holds" in str(fine)
    assert not broken.holds and "violated" in str(broken)


@pytest.mark.parametrize("name", ["Hamiltonian", "PortHamiltonian", "GradientFlow"])
def test_an_invariant_holds_to_rounding(name):
    x, u = 3 * jr.normal(jr.key(4), (500, 2)), jr.normal(jr.key(5), (500, 1))
    check = fd.diagnostics.check_invariant(FIELDS[name], x, 0.3, u)
    assert check.holds
    if X64:
        assert check.worst < 1e-12


def test_a_liquid_state_stays_between_zero_and_its_target():
    x = jr.normal(jr.key(4), (200, 2))
    check = fd.diagnostics.check_invariant(FIELDS["LiquidTimeConstant"], x, 0.3, jnp.ones((200, 1)))
    assert check.holds and check.name == "stays in its box"


@pytest.mark.skipif(not X64, reason="drift at the rounding of float64")
def test_the_energy_of_a_hamiltonian_field_does_not_drift():
    field = FIELDS["Hamiltonian"]
    term = diffrax.ODETerm(lambda t, x, u: field(t, x, u))
    x0 = jnp.array([0.7, -0.4])
    end = diffrax.diffeqsolve(term, diffrax.Dopri8(), 0.0, 5.0, 0.01, x0).ys[0]
    assert jnp.linalg.norm(end - x0) > 0.1
    assert abs(field.energy(end) - field.energy(x0)) < 1e-12


def test_the_port_hamiltonian_of_a_damped_oscillator_is_its_equation():
    field = F.PortHamiltonian(
        lambda x: 0.5 * (4.0 * x[0] ** 2 + x[1] ** 2),
        [[0.0, 1.0], [-1.0, 0.0]],
        [[0.0], [0.5]],
        [[0.0], [2.0]],
    )
    x, u = jnp.array([0.3, -1.2]), jnp.array([0.7])
    np.testing.assert_allclose(
        field(0.0, x, u), [x[1], -4 * x[0] - 0.25 * x[1] + 2 * u[0]], rtol=1e-6
    )


def test_a_residual_that_starts_at_zero_leaves_the_physics_alone():
    field = F.UniversalField(spiral, F.MLP(2, key=KEY, zero=True))
    x = jnp.array([0.4, 1.0])
    np.testing.assert_array_equal(field(0.0, x, None), spiral(0.0, x, None))


def test_normalisation_is_carried_and_not_trained():
    plain = F.MLP(2, key=KEY, width=4)
    scaled = F.MLP(2, key=KEY, width=4, state_center=[1.0, 2.0], state_scale=2.0, output_scale=3.0)
    x = jnp.array([0.4, 1.0])
    np.testing.assert_allclose(
        scaled(0.0, 2 * x + jnp.array([1.0, 2.0]), None), 3 * plain(0.0, x, None), rtol=1e-5
    )
    gradient = eqx.filter_grad(lambda f: f(0.0, x, None).sum())(scaled)
    assert not gradient.state.scale.any() and gradient.weights[0].any()


def test_diffusions_stay_within_their_bounds():
    # A network that shouts.
    shout = F.MLP(2, key=KEY, out=3, output_scale=1e4)
    x = jr.normal(KEY, (200, 2))
    cholesky = F.CholeskyDiffusion(shout, 0.1, 2.0)
    found = np.asarray(jax.jit(jax.vmap(lambda x: cholesky(0.0, x, None)))(x))
    diagonal = np.diagonal(found, axis1=1, axis2=2)
    eps = 1e-5
    assert diagonal.min() >= 0.1 - eps and diagonal.max() <= 2 + eps
    assert (found[:, 0, 1] == 0).all() and np.abs(found).max() <= 2 + eps
    assert np.abs(found[:, 1, 0]).max() > 1
    flat = F.DiagonalDiffusion(F.MLP(2, key=KEY, zero=True), 0.1, 10.0)
    np.testing.assert_allclose(flat(0.0, x[0], None), 1.0, rtol=1e-5)


@pytest.mark.skipif(not X64, reason="finite differences in float64")
@pytest.mark.parametrize(
    "name",
    [n if n in ("Stable", "PortHamiltonian") else pytest.param(n, marks=SLOW) for n in FIELDS],
)
def test_gradients_meet_finite_differences(name):
    field = FIELDS[name]
    arrays, rest = eqx.partition(field, eqx.is_inexact_array)
    # What is normalised by is data and has no derivative.
    mask = jax.tree.map(
        lambda x: jax.tree.map(lambda _: not isinstance(x, F.Normalization), x),
        arrays,
        is_leaf=lambda x: isinstance(x, F.Normalization),
    )
    x, u = jnp.array([0.31, -0.8]), jnp.array([0.4])
    loss = jax.jit(lambda a, x: jnp.sum(eqx.combine(a, rest)(0.2, x, u) * jnp.array([1.0, -0.6])))
    leaves, structure = jax.tree.flatten(arrays)
    keys = jr.split(KEY, len(leaves))
    direction = jax.tree.map(
        lambda leaf, k, m: m * jr.normal(k, leaf.shape),
        arrays,
        jax.tree.unflatten(structure, list(keys)),
        mask,
    )
    step = lambda h: jax.tree.map(lambda leaf, d: leaf + h * d, arrays, direction)
    dx = jnp.array([0.3, 0.5])
    numeric = (loss(step(1e-6), x + 1e-6 * dx) - loss(step(-1e-6), x - 1e-6 * dx)) / 2e-6
    g, gx = jax.grad(loss, argnums=(0, 1))(arrays, x)
    exact = gx @ dx + sum(
        jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(g), jax.tree.leaves(direction), strict=True)
    )
    np.testing.assert_allclose(exact, numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64] if X64 else [jnp.float32])
@pytest.mark.parametrize("name", FIELDS)
def test_a_field_computes_in_the_precision_of_the_state(name, dtype):
    found = FIELDS[name](0.2, jnp.array([0.3, 0.1], dtype), jnp.array([0.4], dtype))
    assert found.dtype == dtype and found.shape == (2,) and jnp.isfinite(found).all()


def model_with(dynamics):
    return fd.StateSpaceModel(
        dist.Normal(jnp.zeros(2), 0.3).to_event(1),
        dynamics,
        fd.LinearObservation(jnp.eye(2)[:1], 0.01),
    )


def as_transition(field):
    return fd.Transition(
        lambda t, x, u: dist.MultivariateNormal(x + 0.1 * field(t, x, u), 0.01 * jnp.eye(2))
    )


DYNAMICS = {
    "ODE": lambda f: fd.ODE(f, substeps=1),
    "SDE": lambda f: fd.SDE(f, 0.1, substeps=1),
    "Transition": as_transition,
}
FILTERS = {
    "extended": fd.ExtendedKalmanFilter(),
    "unscented": fd.UnscentedKalmanFilter(),
    "cubature": fd.CubatureKalmanFilter(),
    "Gauss-Hermite": fd.GaussHermiteKalmanFilter(2),
}
SERIES = fd.Series(0.1 * np.arange(4), np.array([0.1, 0.2, np.nan, 0.1]), np.ones(4))


def check_filtering(field, dynamics, filter):
    model = model_with(dynamics(field))
    value, gradient = eqx.filter_jit(
        eqx.filter_value_and_grad(lambda m: fd.log_likelihood(m, SERIES, filter))
    )(model)
    assert jnp.isfinite(value)
    leaves = jax.tree.leaves(gradient.dynamics)
    assert all(jnp.isfinite(leaf).all() for leaf in leaves)
    return sum(float(jnp.abs(leaf).sum()) for leaf in leaves)


@pytest.mark.parametrize(
    "dynamics",
    [pytest.param(d, marks=[SLOW, pytest.mark.long]) if d != "Transition" else d for d in DYNAMICS],
)
def test_a_projected_field_works_in_every_dynamics_under_jit_and_grad(dynamics):
    size = check_filtering(FIELDS["Stable"], DYNAMICS[dynamics], FILTERS["extended"])
    # A closure holds its numbers out of sight; a module shows them.
    assert size > 0 or dynamics == "Transition"


@pytest.mark.slow
@pytest.mark.parametrize("name", FIELDS)
def test_every_field_works_in_a_filter_of_discrete_time(name):
    check_filtering(FIELDS[name], DYNAMICS["Transition"], FILTERS["extended"])


@pytest.mark.slow
@pytest.mark.parametrize("filter", FILTERS)
def test_a_network_works_in_every_gaussian_filter(filter):
    check_filtering(FIELDS["MLP"], DYNAMICS["SDE"], FILTERS[filter])


@pytest.mark.slow
def test_a_diffusion_network_works_in_a_filter():
    diffusion = F.CholeskyDiffusion(F.MLP(2, key=KEY, out=3, width=4, depth=1), 0.01, 1.0)
    model = model_with(fd.SDE(FIELDS["Linear"], diffusion, substeps=1))
    gradient = eqx.filter_grad(lambda m: fd.log_likelihood(m, SERIES, FILTERS["extended"]))(model)
    assert jnp.abs(gradient.dynamics.diffusion.value.network.weights[0]).sum() > 0


def test_errors_name_argument_value_and_what_was_expected():
    with pytest.raises(ValueError, match=r"`state_scale` is 0.0; expected positive"):
        F.MLP(2, key=KEY, state_scale=0.0)
    with pytest.raises(TypeError, match=r"`known` is float; expected a function of \(t, x, u\)"):
        F.UniversalField(1.0, spiral)
    with pytest.raises(ValueError, match=r"`u` is None; expected an input of shape \(1,\)"):
        FIELDS["MLP"](0.0, jnp.zeros(2), None)
    with pytest.raises(ValueError, match="expected 0 < low < high"):
        F.DiagonalDiffusion(spiral, 1.0, 0.5)
    with pytest.raises(TypeError, match="states no invariant"):
        fd.diagnostics.check_invariant(FIELDS["Linear"], jnp.zeros((1, 2)))
