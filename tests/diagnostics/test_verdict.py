"""The verdict on draws: each failure is planted, alone, in draws that pass otherwise."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS, SA
from numpyro.infer.gibbs import CustomGibbs, Gibbs

import filterdyn as fd

arviz_base = pytest.importorskip("arviz_base")
CHAINS, DRAWS = 4, 500


def tree(**changes):
    """Independent draws of two parameters and of the energy of a sampler that mixes at once."""
    rng = np.random.default_rng(0)
    posterior = {"a": rng.normal(size=(CHAINS, DRAWS)), "b": rng.normal(size=(CHAINS, DRAWS, 2))}
    statistics = {
        "diverging": np.zeros((CHAINS, DRAWS), bool),
        "energy": rng.normal(size=(CHAINS, DRAWS)),
    }
    for name, value in changes.items():
        group = posterior if name in posterior else statistics
        if value is None:
            del group[name]
        else:
            group[name] = value
    groups = {"posterior": posterior, "sample_stats": statistics}
    return arviz_base.from_dict({name: group for name, group in groups.items() if group})


def only_failure(found):
    assert not found.ok
    text = str(found)
    assert text.startswith("not ok\n")
    (failure,) = found.failures
    assert f"  {failure.name}: {failure.message}" in text
    return failure


def test_good_draws_are_ok_and_the_line_has_the_figures():
    found = fd.diagnostics.verdict(tree())
    assert found.ok
    assert not found.failures
    line = str(found)
    assert line.startswith("ok: R-hat 1.00")
    assert "no divergences" in line
    assert "\n" not in line
    assert all(check.state == "passed" for check in found.checks)


def test_a_chain_elsewhere_fails_by_its_r_hat():
    """A shift that the effective sample size survives."""
    rng = np.random.default_rng(1)
    b = rng.normal(size=(CHAINS, 4000, 2))
    a = rng.normal(size=(CHAINS, 4000))
    b[3, :, 1] += 0.45
    zeros = np.zeros((CHAINS, 4000))
    energy = rng.normal(size=zeros.shape)
    changed = tree(a=a, b=b, diverging=zeros.astype(bool), energy=energy)
    found = fd.diagnostics.verdict(changed, ess=10, ess_per_chain=1)
    failure = only_failure(found)
    assert (failure.name, failure.where) == ("R-hat", "b[1]")
    assert 1.01 < failure.value < 1.1
    assert f"{failure.value:.3f} (b[1]), expected at most 1.01; the chains have not met" in str(
        found
    )


def autoregressive(rho, rng, shape):
    noise = rng.normal(size=shape) * np.sqrt(1 - rho**2)
    x = np.empty(shape)
    x[:, 0] = rng.normal(size=shape[0])
    for k in range(1, shape[1]):
        x[:, k] = rho * x[:, k - 1] + noise[:, k]
    return x


def test_a_slow_chain_fails_by_its_effective_sample_size():
    """n (1 - rho) / (1 + rho) of 2,000 draws with rho = 0.8 is 222."""
    slow = autoregressive(0.8, np.random.default_rng(2), (CHAINS, DRAWS))
    found = fd.diagnostics.verdict(tree(a=slow), rhat=1.1)
    assert {failure.name for failure in found.failures} >= {"bulk ESS"}
    bulk = next(c for c in found.checks if c.name == "bulk ESS")
    assert (bulk.state, bulk.where) == ("failed", "a")
    assert 120 < bulk.value < 360
    assert "expected more than 400" in bulk.message


def test_effective_draws_are_asked_for_in_every_chain():
    assert fd.diagnostics.verdict(tree(), ess_per_chain=300).ok
    found = fd.diagnostics.verdict(tree(), ess_per_chain=600)
    assert {failure.name for failure in found.failures} == {"bulk ESS", "tail ESS"}


def test_tails_that_are_seldom_visited_fail_by_the_tail_size_only():
    """An indicator of the tail that changes slowly under a bulk that mixes."""
    rng = np.random.default_rng(3)
    far = autoregressive(0.97, rng, (CHAINS, DRAWS))
    x = np.abs(rng.normal(size=(CHAINS, DRAWS)))
    a = np.where(far > 1.5, 3 + x, rng.normal(size=x.shape).clip(-9, 2.5))
    found = fd.diagnostics.verdict(tree(a=a), rhat=1.2, ess=390, ess_per_chain=10)
    assert "tail ESS" in {failure.name for failure in found.failures}


def test_one_divergence_is_one_too_many():
    diverging = np.zeros((CHAINS, DRAWS), bool)
    diverging[2, 7] = True
    failure = only_failure(fd.diagnostics.verdict(tree(diverging=diverging)))
    assert (failure.name, failure.value, failure.where) == ("divergences", 1, "chain 2")
    assert "1 of 2000 draws" in failure.message
    assert "target_accept_prob" in failure.message


def test_an_energy_that_changes_slowly_fails():
    """For an autoregression the ratio is 2 (1 - rho)."""
    energy = np.random.default_rng(4).normal(size=(CHAINS, DRAWS))
    energy[1] = autoregressive(0.95, np.random.default_rng(5), (1, DRAWS))[0]
    failure = only_failure(fd.diagnostics.verdict(tree(energy=energy)))
    assert (failure.name, failure.where) == ("E-BFMI", "chain 1")
    assert 0.05 < failure.value < 0.2


@pytest.mark.parametrize("missing", ["diverging", "energy"])
def test_what_was_not_recorded_is_not_ok(missing):
    failure = only_failure(fd.diagnostics.verdict(tree(**{missing: None})))
    assert failure.state == "not computed"
    assert np.isnan(failure.value)


def test_draws_without_statistics_are_not_ok():
    found = fd.diagnostics.verdict(tree(diverging=None, energy=None))
    assert {failure.name for failure in found.failures} == {"divergences", "E-BFMI"}


def test_one_chain_has_no_r_hat():
    rng = np.random.default_rng(6)
    one = arviz_base.from_dict(
        {
            "posterior": {"a": rng.normal(size=(1, 2000))},
            "sample_stats": {
                "diverging": np.zeros((1, 2000), bool),
                "energy": rng.normal(size=(1, 2000)),
            },
        }
    )
    failure = only_failure(fd.diagnostics.verdict(one))
    assert (failure.name, failure.state) == ("R-hat", "not computed")
    assert "num_chains=4" in failure.message


def test_draws_that_are_stuck_or_not_finite_are_not_ok():
    for bad, words in ((np.full((CHAINS, DRAWS), 2.0), "the same number"), (None, "not finite")):
        if bad is None:
            bad = np.random.default_rng(7).normal(size=(CHAINS, DRAWS))
            bad[0, 3] = np.nan
        found = fd.diagnostics.verdict(tree(a=bad))
        assert {failure.name for failure in found.failures} == {"R-hat", "bulk ESS", "tail ESS"}
        assert all(words in failure.message for failure in found.failures)
        assert fd.diagnostics.verdict(tree(a=bad), var_names=["b"]).ok


def test_nuts_as_a_block_of_gibbs_is_not_ok_without_its_divergences():
    def model():
        numpyro.sample("a", dist.Normal())
        numpyro.sample("b", dist.Normal())

    update = lambda rng_key, gibbs_sites, hmc_sites: {"a": dist.Normal().sample(rng_key)}

    class Run:
        sampler = Gibbs([(CustomGibbs(update), ["a"]), (NUTS(model), ["b"])])
        get_samples = staticmethod(
            lambda group_by_chain: {"a": np.random.default_rng(9).normal(size=(CHAINS, DRAWS))}
        )
        get_extra_fields = staticmethod(lambda group_by_chain: {})

    found = fd.diagnostics.verdict(Run())
    assert {failure.name for failure in found.failures} == {"divergences", "E-BFMI"}
    fields = {
        "hmc_state.diverging": np.zeros((CHAINS, DRAWS), bool),
        "hmc_state.energy": np.random.default_rng(10).normal(size=(CHAINS, DRAWS)),
    }
    Run.get_extra_fields = staticmethod(lambda group_by_chain: fields)
    assert fd.diagnostics.verdict(Run()).ok


def test_zeros_of_a_triangle_do_not_count():
    b = np.random.default_rng(8).normal(size=(CHAINS, DRAWS, 2))
    b[..., 0] = 0.0
    assert fd.diagnostics.verdict(tree(b=b)).ok


def test_other_arguments_are_errors():
    with pytest.raises(TypeError, match=r"is dict; expected numpyro.infer.MCMC"):
        fd.diagnostics.verdict({"a": np.ones(3)})
    with pytest.raises(KeyError, match="`var_names` has 'c'; the draws have"):
        fd.diagnostics.verdict(tree(), var_names=["c"])


def funnel():
    scale = numpyro.sample("scale", dist.Normal(0.0, 3.0))
    numpyro.sample("x", dist.Normal(jnp.zeros(9), jnp.exp(scale / 2)).to_event(1))


def sampled(kernel, draws=300, method="vectorized", **run):
    mcmc = MCMC(
        kernel,
        num_warmup=200,
        num_samples=draws,
        num_chains=4,
        chain_method=method,
        progress_bar=False,
    )
    mcmc.run(jr.key(0), **run)
    return mcmc


@pytest.mark.slow
def test_the_funnel_is_refused_and_a_gaussian_is_not():
    found = fd.diagnostics.verdict(sampled(NUTS(funnel), extra_fields=("energy",)))
    assert not found.ok
    assert {"R-hat", "bulk ESS", "E-BFMI"} <= {failure.name for failure in found.failures}
    gaussian = lambda: numpyro.sample("x", dist.Normal(0.0, 1.0))
    mcmc = sampled(NUTS(gaussian), draws=1000, extra_fields=("energy",))
    assert fd.diagnostics.verdict(mcmc).ok, str(fd.diagnostics.verdict(mcmc))
    silent = sampled(NUTS(gaussian), draws=1000)
    assert "extra_fields" in str(fd.diagnostics.verdict(silent))


@pytest.mark.slow
def test_a_sampler_without_trajectories_is_judged_by_its_chains():
    gaussian = lambda: numpyro.sample("x", dist.Normal(0.0, 1.0))
    found = fd.diagnostics.verdict(sampled(SA(gaussian), 20_000, "sequential"), rhat=1.05)
    states = {check.name: check.state for check in found.checks}
    assert states["divergences"] == states["E-BFMI"] == "does not apply"
    assert found.ok, str(found)
    assert "does not apply" in str(found)
