"""Libraries of terms, and the fields that are sums of them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

import filterdyn as fd

X64 = jax.config.read("jax_enable_x64")
TIGHT = 1e-12 if X64 else 1e-5
Library = fd.inference.TermLibrary
Field = fd.inference.TermField


def lotka_volterra(library):
    table = np.zeros((2, len(library)))
    for state, term, value in (
        (0, "x", 1.3),
        (0, "x y", -0.9),
        (1, "y", -1.8),
        (1, "x y", 0.8),
    ):
        table[state, library.names.index(term)] = value
    return table


def test_terms_have_readable_names_and_those_values():
    square = lambda t, x, u: t * x[0] * u[0]
    library = Library(
        ["x", "y"], ["u"], degree=2, sines=[1.0], cosines=[2.5], functions={"t x u": square}
    )
    x, y, u, t = 0.3, -1.2, 0.7, 2.0
    expected = {
        "1": 1.0, "x": x, "y": y, "u": u, "x^2": x * x, "x y": x * y, "x u": x * u, "y^2": y * y,
        "y u": y * u, "u^2": u * u, "sin(x)": np.sin(x), "sin(y)": np.sin(y), "sin(u)": np.sin(u),
        "cos(2.5 x)": np.cos(2.5 * x), "cos(2.5 y)": np.cos(2.5 * y), "cos(2.5 u)": np.cos(2.5 * u),
        "t x u": t * x * u,
    }  # fmt: skip
    assert library.names == tuple(expected)
    found = library(t, jnp.array([x, y]), jnp.array([u]))
    np.testing.assert_allclose(found, list(expected.values()), rtol=TIGHT)
    rows = library.evaluate([[x, y], [0.0, 0.0]], [u, 0.0], [t, 0.0])
    np.testing.assert_allclose(rows[0], found, rtol=TIGHT)


@pytest.mark.parametrize(("variables", "degree"), [(1, 5), (2, 5), (3, 3)])
def test_there_are_as_many_monomials_as_the_binomial_says(variables, degree):
    names = ["a", "b", "c"][:variables]
    count = {(1, 5): 6, (2, 5): 21, (3, 3): 20}[variables, degree]
    assert len(Library(names, degree=degree)) == count
    assert len(Library(names, degree=degree, constant=False)) == count - 1


def test_monomials_have_derivatives_at_zero():
    library = Library(["x", "y"], degree=3)
    slopes = jax.jacfwd(lambda x: library(0.0, x))(jnp.zeros(2))
    assert np.isfinite(slopes).all()
    assert slopes[library.names.index("x")].tolist() == [1.0, 0.0]


def test_a_field_is_the_sum_of_its_terms():
    library = Library(["x", "y"], degree=3, sines=[1.0])
    field = Field(library, lotka_volterra(library))
    assert field.terms == (("x", "x"), ("x", "x y"), ("y", "y"), ("y", "x y"))
    assert field.library.names == ("x", "y", "x y")
    x = jnp.array([0.7, 1.9])
    expected = [1.3 * 0.7 - 0.9 * 0.7 * 1.9, 0.8 * 0.7 * 1.9 - 1.8 * 1.9]
    np.testing.assert_allclose(field(0.0, x), expected, rtol=TIGHT)
    other = field.with_coefficients(2 * field.coefficients)
    np.testing.assert_allclose(other(0.0, x), 2 * np.array(expected), rtol=TIGHT)
    np.testing.assert_array_equal(Field(library, 0 * lotka_volterra(library))(0.0, x), [0.0, 0.0])


@pytest.mark.slow
def test_a_field_can_be_fitted_in_a_model():
    library = Library(["x"], degree=1)
    decay = lambda rate: fd.StateSpaceModel(
        dist.Delta(jnp.array([2.0]), event_dim=1),
        fd.ODE(Field(library, [[0.0, -rate]]), substeps=4),
        fd.LinearObservation([[1.0]], 0.01),
    )
    times = np.linspace(0.0, 2.0, 11)
    series = fd.Series(times, 2.0 * np.exp(-0.5 * times))
    found = fd.fit(
        decay(1.0), series, fd.ExtendedKalmanFilter(), optimizer=optax.adam(0.05), steps=200
    )
    assert found.model.dynamics.field.value.coefficients[0] == pytest.approx(-0.5, abs=1e-3)


def test_fields_of_a_batch_have_coefficients_of_their_own():
    library = Library(["x", "y"], degree=2)
    field = Field(library, lotka_volterra(library))
    values = jnp.arange(12.0).reshape(3, 4)
    many = eqx.filter_vmap(field.with_coefficients)(values)
    found = eqx.filter_vmap(lambda f: f(0.0, jnp.array([0.5, 2.0])))(many)
    np.testing.assert_allclose(
        found, np.stack([values[:, 0] * 0.5 + values[:, 1], values[:, 2] * 2 + values[:, 3]], 1)
    )


def test_some_terms_can_be_taken():
    twice = lambda t, x, u: 2 * x[1]
    library = Library(["x", "y"], degree=2, sines=[1.0], functions={"2y": twice})
    part = library.take(["2y", "sin(x)", "x y"])
    assert part.names == ("x y", "sin(x)", "2y")
    np.testing.assert_allclose(
        part(0.0, jnp.array([0.5, 3.0])), [1.5, np.sin(0.5), 6.0], rtol=TIGHT
    )


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "state_names.*'x'.*more than once", lambda: Library(["x", "x"])),
        (ValueError, "state_names.*empty", lambda: Library([])),
        (ValueError, "`degree` is -1", lambda: Library(["x"], degree=-1)),
        (ValueError, "no terms", lambda: Library(["x"], degree=0, constant=False)),
        (TypeError, r"functions\['f'\].*int", lambda: Library(["x"], functions={"f": 3})),
        (ValueError, "more than once", lambda: Library(["x"], functions={"x^2": lambda *a: 0.0})),
        (ValueError, r"`x` has shape \(3,\)", lambda: Library(["x"])(0.0, jnp.zeros(3))),
        (ValueError, "`u` is None", lambda: Library(["x"], ["u"])(0.0, jnp.zeros(1))),
        (ValueError, r"shape \(2,\); expected \(\)",
         lambda: Library(["x"], functions={"f": lambda t, x, u: jnp.zeros(2)})(0.0, jnp.zeros(1))),
        (ValueError, r"`states` has shape \(4, 2\)", lambda: Library(["x"]).evaluate(np.zeros((4, 2)))),
        (ValueError, "`times` has shape", lambda: Library(["x"]).evaluate(np.zeros((4, 1)), times=[1.0])),
        (KeyError, "no term 'z'", lambda: Library(["x"]).take(["z"])),
        (ValueError, r"`coefficients` has shape \(1, 2\)", lambda: Field(Library(["x"]), np.ones((1, 2)))),
        (ValueError, "NaN", lambda: Field(Library(["x"]), [[np.nan, 0.0, 0.0]])),
        (ValueError, r"shape \(2,\); expected \(1,\)",
         lambda: Field(Library(["x"]), [[0.0, 1.0, 0.0]]).with_coefficients(jnp.ones(2))),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(error, message, call):
    with pytest.raises(error, match=message):
        call()
