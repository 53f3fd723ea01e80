"""Activity of units, for shifts that are known."""

import jax.numpy as jnp
import numpy as np

import filterdyn as fd
from filterdyn.inference import PathBound
from filterdyn.inference.path_collapse import activity, warning_of


def some_units():
    """Three units over 40 series of 25 rows, the last 5 of which do not count: with shifts N(0, 1), always
    the same, and zero but for the noise of an estimate."""
    z = np.random.default_rng(0).normal(size=(40, 25, 3))
    shifts = np.stack([z[..., 0], np.full((40, 25), 2.0), 0.3 * z[..., 2]], axis=-1)
    shifts[:, 20:] = 99.0
    errors = np.broadcast_to([0.0, 0.0, 0.09], shifts.shape)
    kl = np.broadcast_to([0.1, 0.2, 0.0], shifts.shape)
    return [jnp.asarray(x) for x in (shifts, errors, kl)], jnp.arange(25) < 20


def test_a_unit_is_active_where_its_mean_varies_with_the_data():
    """800 draws: the variance is known to 5 %, and what is left of that of the estimate is below 0.01."""
    arrays, used = some_units()
    found = activity(*arrays, used)
    assert abs(float(found.variance[0]) - 1) < 0.2
    assert found.active.tolist() == [True, False, False]
    np.testing.assert_allclose(found.kl, [2.5, 5.0, 0.0], rtol=1e-5)


def test_the_warning_names_inactive_units():
    arrays, used = some_units()
    found = activity(*arrays, used)
    assert warning_of(found).startswith("2 of 3 noises are not used by the posterior")
    assert ": 1 (0), 2 (" in warning_of(found)
    only = activity(*(x[..., :1] for x in arrays), used)
    assert warning_of(only) is None


def test_one_path_a_series_does_not_tell_which_noises_are_used():
    units, rows = jnp.ones((3, 1)), jnp.ones((4, 1))
    zero, none = jnp.zeros(()), jnp.full((3, 1), jnp.nan)
    bound = PathBound(
        zero, none[0, 0], zero, rows[:, 0], units[0], units, units[0], units, none, rows, rows,
        units[:, 0] > 0, jnp.array(True), jnp.int32(fd.Status.OK),
    )  # fmt: skip
    assert "give path_elbo `num_samples` of 2 or more" in bound.warning
