"""Does inference give back what it was told? Simulation-based calibration of a NumPyro model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro import handlers
from numpyro.diagnostics import effective_sample_size
from numpyro.infer.util import log_density

from filterdyn._checks import check_count, check_key
from filterdyn._groups import in_groups
from filterdyn.diagnostics import uniformity
from filterdyn.diagnostics.nuts_draws import nuts_draws
from filterdyn.diagnostics.residuals import check_level

_OWNER = "simulation_based_calibration"
#: What the rank of the joint density is called.
LOG_DENSITY = "log density"
#: Below this share of independent draws, ranks lean to the ends by themselves.
_EFFICIENT = 0.5


@dataclass(frozen=True)
class SimulationBasedCalibration:
    """Ranks of true parameters among draws of their posteriors, which are uniform if all is right.

    - `ranks`: by parameter, (N,), from 0 to `num_draws`; `log density` is the joint density of
      parameters and data, which sees errors that no single parameter shows (a posterior that is the
      prior, a correlation left out);
    - `p_values`: by parameter, of their uniformity;
    - `rate`: the chance of a false alarm, of all parameters together;
    - `efficiency`: by parameter, effective over counted draws, the mean over simulations;
    - `diverging`: the share of simulations with a divergent transition (0 for a sampler of your own);
    - `failed`: how many simulations had data or draws that were not finite, and have no rank;
    - `ok`: nothing failed, and no p-value is below `rate` over the number of parameters.
    """

    ranks: dict[str, np.ndarray]
    p_values: dict[str, float]
    num_draws: int
    rate: float
    efficiency: dict[str, float]
    diverging: float
    failed: int

    @property
    def limit(self) -> float:
        """The smallest p-value that is no alarm (Bonferroni)."""
        return self.rate / len(self.p_values)

    @property
    def ok(self) -> bool:
        return self.failed == 0 and all(p >= self.limit for p in self.p_values.values())

    def __str__(self) -> str:
        count = len(next(iter(self.ranks.values())))
        lines = [
            f"simulation-based calibration: {'ok' if self.ok else 'not ok'}, {count} simulations, "
            f"ranks among {self.num_draws} draws, false alarms {self.rate:g}"
        ]
        for name, p in self.p_values.items() if count else ():
            words = "uniform within chance" if p >= self.limit else self._shape(name)
            lines.append(f"  {name}: p = {p:.2g}; {words}")
        if self.failed:
            lines.append(f"  {self.failed} simulations failed: data or draws were not finite")
        if self.diverging:
            lines.append(f"  {self.diverging:.1%} of the simulations had divergent transitions")
        slow = {n: e for n, e in self.efficiency.items() if e < _EFFICIENT}
        if slow:
            name = min(slow, key=lambda n: slow[n])
            lines.append(
                f"  draws of {name} are not independent (effective share {slow[name]:.2f}), which makes "
                "extreme ranks by itself: raise `thinning`"
            )
        return "\n".join(lines)

    def _shape(self, name: str) -> str:
        u = (self.ranks[name] + 0.5) / (self.num_draws + 1)
        lean = (u.mean() - 0.5) * np.sqrt(12 * len(u))
        if abs(lean) > 3:
            return f"the truth lies too {'high' if lean > 0 else 'low'}: the posterior is biased"
        wide = u.var() < 1 / 12
        return "the posterior is too wide" if wide else "the posterior is too narrow"


def simulation_based_calibration(
    model: Callable[..., Any],
    *args: Any,
    key: Array,
    site: str | Sequence[str] = "y",
    simulator: Callable[..., Any] | None = None,
    sampler: Callable[..., Mapping[str, Any]] | None = None,
    num_simulations: int = 1000,
    num_warmup: int = 200,
    num_draws: int = 99,
    thinning: int = 2,
    kernel_settings: Mapping[str, Any] | None = None,
    var_names: Sequence[str] | None = None,
    rate: float = 0.01,
    batch_size: int = 250,
    compiled: bool = True,
    **kwargs: Any,
) -> SimulationBasedCalibration:
    """Draw parameters from the prior and data from the model, infer the parameters back, and count how
    many posterior draws lie below the true ones. If model, likelihood and sampler belong together, the
    ranks are uniform; a likelihood that is wrong or an approximation, or a sampler that does not reach
    its posterior, shows.

        found = fd.diagnostics.simulation_based_calibration(model, times, key=jax.random.key(0))
        print(found)

    All simulations are one compiled program, in which `batch_size` chains run side by side.

    **Arguments:**

    - `model`, `*args`, `**kwargs`: a NumPyro model called without its data: what it draws at `site` is
      the data (one name or several), to be met as an observation;
    - `key`: a JAX random key;
    - `simulator`: where parameters and data come from if not from `model` itself, such as the exact model
      of which `model` is an approximation; called with the same arguments;
    - `sampler`: a function `(key, model, *args, **kwargs)` that returns draws by name, (num_draws, ...),
      of the model it is given, whose data are in place. By default NUTS, one chain with
      `kernel_settings` (`dense_mass=True` and what else `numpyro.infer.NUTS` takes), `num_warmup` steps,
      then every `thinning`-th of `num_draws * thinning` draws;
    - `var_names`: parameters to rank, by default all. Arrays are ranked entry by entry;
    - `rate`: the chance of a false alarm, of all ranks together;
    - `batch_size`: so many simulations are run side by side;
    - `compiled`: `False` for a `sampler` that JAX cannot trace, which is then called once for each.

    **Returns** a `SimulationBasedCalibration`, which `fd.plots.calibration_ranks` draws.

    **Raises:** `KeyError` for names that the model or the draws do not have, `ValueError` for counts and
    rates out of range, a site that has data already and draws of another number.

    Reference: Talts, Betancourt, Simpson, Vehtari, Gelman 2018, "Validating Bayesian inference algorithms
    with simulation-based calibration"; Modrák et al. 2023 for the joint density; `uniformity` of ranks
    after Säilynoja, Bürkner, Vehtari 2022.
    """
    check_key(_OWNER, key)
    check_level(_OWNER, "rate", rate)
    num_simulations = check_count(_OWNER, "num_simulations", num_simulations)
    num_draws = check_count(_OWNER, "num_draws", num_draws)
    batch_size = min(check_count(_OWNER, "batch_size", batch_size), num_simulations)
    sites = [site] if isinstance(site, str) else list(site)
    simulate = _simulator(model if simulator is None else simulator, args, kwargs, sites)
    names = _names(simulate(key)[0], var_names)
    if sampler is None:
        warmup = check_count(_OWNER, "num_warmup", num_warmup)
        thin = check_count(_OWNER, "thinning", thinning)
        draw = nuts_draws(warmup, num_draws, thin, dict(kernel_settings or {}))
    else:
        chosen = sampler
        draw = lambda key, model, *a, **k: (chosen(key, model, *a, **k), jnp.zeros((), bool))

    def one(key: Array) -> Any:
        key_truth, key_draws = jax.random.split(key)
        truth, data = simulate(key_truth)
        conditioned = handlers.condition(model, data=data)
        draws, diverging = draw(key_draws, conditioned, *args, **kwargs)
        draws = _checked(draws, names, num_draws)
        density = lambda at: log_density(conditioned, args, kwargs, at)[0]
        whole = {n: truth[n] for n in truth if n in draws}
        truth, ranked = dict(truth), {n: draws[n] for n in names}
        truth[LOG_DENSITY] = density(whole)
        ranked[LOG_DENSITY] = jax.vmap(density)({n: jnp.asarray(draws[n]) for n in whole})
        kept = {n: truth[n] for n in (*names, LOG_DENSITY)}
        fine = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves((kept, ranked, data))])
        return kept, ranked, diverging, fine.all()

    keys = jax.random.split(key, num_simulations)
    if compiled:
        run = jax.jit(lambda keys: in_groups(one, keys, batch_size))
        found = run(keys)
    else:
        each = [one(k) for k in keys]
        found = jax.tree.map(lambda *x: np.stack([np.asarray(y) for y in x]), *each)
    truth, draws, diverging, fine = jax.tree.map(np.asarray, found)
    return _result([*names, LOG_DENSITY], truth, draws, diverging, fine, num_draws, rate)


def _simulator(
    simulator: Callable[..., Any], args: Any, kwargs: Any, sites: Sequence[str]
) -> Callable[[Array], tuple[dict[str, Array], dict[str, Array]]]:
    """Parameters and data."""

    def simulate(key: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        trace = handlers.trace(handlers.seed(simulator, key)).get_trace(*args, **kwargs)
        for name in sites:
            if name not in trace:
                raise KeyError(
                    f"{_OWNER}: the model has no site {name!r}; its sites are {sorted(trace)}"
                )
            if trace[name]["is_observed"]:
                raise ValueError(
                    f"{_OWNER}: the site {name!r} has data already; call the model without them"
                )
        latent = {
            n: s["value"]
            for n, s in trace.items()
            if s["type"] == "sample" and not s["is_observed"] and n not in sites
        }
        return latent, {n: trace[n]["value"] for n in sites}

    return simulate


def _names(latent: Mapping[str, Any], var_names: Sequence[str] | None) -> list[str]:
    if not latent:
        raise ValueError(f"{_OWNER}: the model draws no parameters; expected one or more")
    for name in var_names or ():
        if name not in latent:
            raise KeyError(
                f"{_OWNER}: `var_names` has {name!r}; the parameters are {sorted(latent)}"
            )
    return list(latent) if var_names is None else list(var_names)


def _checked(draws: Any, names: Sequence[str], num_draws: int) -> dict[str, Array]:
    draws = {name: jnp.asarray(x) for name, x in draws.items()}
    for name in names:
        if name not in draws:
            raise KeyError(
                f"{_OWNER}: the sampler returned no draws of {name!r}, only {sorted(draws)}"
            )
        if draws[name].shape[:1] != (num_draws,):
            raise ValueError(
                f"{_OWNER}: the sampler returned {name!r} of shape {draws[name].shape}; expected "
                f"({num_draws}, ...), as `num_draws` says"
            )
    return draws


def _result(
    names: Sequence[str],
    truth: dict[str, np.ndarray],
    draws: dict[str, np.ndarray],
    diverging: np.ndarray,
    fine: np.ndarray,
    num_draws: int,
    rate: float,
) -> SimulationBasedCalibration:
    rng = np.random.default_rng(0)
    ranks, p_values, efficiency = {}, {}, {}
    for name in names:
        x = truth[name][fine]
        each = draws[name][fine]
        for index in np.ndindex(x.shape[1:]):
            label = f"{name}[{', '.join(map(str, index))}]" if index else name
            value, among = x[(slice(None), *index)], each[(slice(None), slice(None), *index)]
            below = (among < value[:, None]).sum(1)
            # The rank among equals, of which a discrete parameter has many, is drawn.
            equal = (among == value[:, None]).sum(1)
            ranks[label] = below + rng.integers(0, equal + 1)
            p_values[label] = uniformity.p_value(ranks[label], num_draws)
            moves = np.ptp(among, axis=1) > 0
            effective = np.zeros(len(among))
            if num_draws > 3 and moves.any():
                effective[moves] = effective_sample_size(among[moves].T[None]) / num_draws
            efficiency[label] = float(effective.mean()) if len(effective) else float("nan")
    return SimulationBasedCalibration(
        ranks,
        p_values,
        num_draws,
        rate,
        efficiency,
        float(diverging.mean()),
        int((~fine).sum()),
    )
