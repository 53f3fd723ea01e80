"""May draws of a posterior be used? One line: ok, or what is wrong with them and what to do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpyro.infer.hmc import HMC

from filterdyn.inference.draws import samples_of

_OWNER = "verdict"
_ADVICE = {
    "R-hat": "the chains have not met: draw more, after a longer warm-up; if that does not help, look for "
    "several modes or for parameters that the data cannot tell apart (fd.diagnostics.identifiability)",
    "bulk ESS": "draw more; if chains move slowly, reparameterise or use dense_mass=True",
    "tail ESS": "draw more; the quantiles are not known yet, though means may be",
    "divergences": "the sampler left out a part of the posterior: raise target_accept_prob (0.95, 0.99) or "
    "reparameterise (non-centred); more draws do not help",
    "E-BFMI": "the sampler explores the tails too slowly: reparameterise, or warm up for longer",
}


@dataclass(frozen=True)
class SamplingCheck:
    """One check of a sampler.

    - `name`, and `state`: `"passed"`, `"failed"`, `"not computed"`, or `"does not apply"`;
    - `value`: the worst one, of the parameter or chain `where`; NaN if it was not computed;
    - `limit`: what was asked for; `message`: the check in words, with what to do unless it passed.
    """

    name: str
    state: str
    value: float
    limit: float
    where: str
    message: str


@dataclass(frozen=True)
class Verdict:
    """What `verdict` found. `ok` is true only if every check was computed and passed; `checks` are all of
    them, `failures` those that stand in the way. As a text: a line that begins with `ok`, or `not ok`
    and a line for each failure."""

    ok: bool
    checks: tuple[SamplingCheck, ...]

    @property
    def failures(self) -> tuple[SamplingCheck, ...]:
        return tuple(c for c in self.checks if c.state in ("failed", "not computed"))

    def __str__(self) -> str:
        if self.ok:
            return "ok: " + "; ".join(c.message for c in self.checks)
        return "\n".join(["not ok", *(f"  {c.name}: {c.message}" for c in self.failures)])


def verdict(
    mcmc_or_datatree: Any,
    *,
    var_names: Sequence[str] | None = None,
    rhat: float = 1.01,
    ess_per_chain: float = 100.0,
    ess: float = 400.0,
    bfmi: float = 0.3,
) -> Verdict:
    """May these draws of a posterior be used? `print(fd.diagnostics.verdict(mcmc))` says so.

    Checked are, for the worst entry of all parameters, the rank-normalised split R-hat over chains
    (at most `rhat`) and the effective sample sizes of the bulk and of the tails (more than
    `ess_per_chain` for each chain and `ess` together); that no transition diverged; and that E-BFMI,
    mean squared change of the energy from draw to draw over its variance, is above `bfmi` in every chain.

    It never says ok where a check could not be computed: there is no R-hat of one chain, and E-BFMI
    needs `mcmc.run(..., extra_fields=("energy",))`. A sampler without trajectories (of particles, of
    random walks) has no divergences and no E-BFMI, which the verdict on its `MCMC` says.

    **Arguments:**

    - `mcmc_or_datatree`: a NumPyro `MCMC` after its run, or an ArviZ `DataTree` (of `fd.to_datatree`)
      with the groups `posterior` and `sample_stats`;
    - `var_names`: the parameters to look at, by default all, those that follow from others included;
    - `rhat`, `ess_per_chain`, `ess`, `bfmi`: the limits.

    **Returns** a `Verdict`.

    **Raises:** `TypeError` for anything else, `KeyError` for a name that is not there.

    Reference: Vehtari, Gelman, Simpson, Carpenter, Buerkner 2021, "Rank-normalization, folding, and
    localization"; Betancourt 2016, "Diagnosing suboptimal cotangent disintegrations".
    """
    samples, statistics, has_trajectories = _parts(mcmc_or_datatree)
    for name in var_names or ():
        if name not in samples:
            raise KeyError(f"{_OWNER}: `var_names` has {name!r}; the draws have {sorted(samples)}")
    samples = {n: x for n, x in samples.items() if var_names is None or n in var_names}
    chains = next(iter(samples.values())).shape[0]
    least = max(ess, ess_per_chain * chains)
    checks = [
        *_of_parameters(samples, rhat, least),
        _divergences(statistics, has_trajectories),
        _energy(statistics, has_trajectories, bfmi),
    ]
    fine = all(check.state in ("passed", "does not apply") for check in checks)
    return Verdict(fine, tuple(checks))


def _parts(given: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], bool]:
    """Samples, statistics, and whether a sampler with trajectories made them."""
    if hasattr(given, "children") and "posterior" in given.children:
        group = lambda name: {str(k): np.asarray(v) for k, v in given[name].data_vars.items()}
        statistics = group("sample_stats") if "sample_stats" in given.children else {}
        samples, trajectories = group("posterior"), True
    elif hasattr(given, "get_samples"):
        samples, statistics = samples_of(_OWNER, given)
        trajectories = _has_trajectories(given.sampler)
    else:
        raise TypeError(
            f"{_OWNER}: `mcmc_or_datatree` is {type(given).__name__}; expected numpyro.infer.MCMC after its "
            "run, or a DataTree with a group `posterior`"
        )
    if not samples:
        raise ValueError(f"{_OWNER}: `mcmc_or_datatree` has no parameters; expected some")
    return samples, statistics, trajectories


def _has_trajectories(kernel: Any) -> bool:
    """Is it a Hamiltonian kernel, or does it hold one, alone or as a block?"""
    if isinstance(kernel, HMC) or hasattr(kernel, "inner_kernel"):
        return True
    return any(map(_has_trajectories, getattr(kernel, "_kernels", ())))


def _of_parameters(
    samples: Mapping[str, np.ndarray], rhat: float, least: float
) -> list[SamplingCheck]:
    from arviz_stats.base import array_stats  # ArviZ takes as long to import as all the rest

    entries = _entries(samples)
    broken = [name for name, x in entries if not np.isfinite(x).all()]
    still = [name for name, x in entries if np.isfinite(x).all() and np.ptp(x) == 0]
    why = ""
    if broken:
        why = f"{_some(broken)} has draws that are not finite"
    elif still:
        why = (
            f"{_some(still)} is the same number in all draws: the sampler is stuck, or this is no "
            "parameter (then name those that are in `var_names`)"
        )
    elif min(x.shape[1] for _, x in entries) < 4:
        why = "fewer than 4 draws"
    one = entries[0][1].shape[0] < 2
    several = "needs two or more chains (four are better): MCMC(..., num_chains=4)"
    checks = []
    for name, limit, measure, worst in (
        ("R-hat", rhat, array_stats.rhat, np.argmax),
        ("bulk ESS", least, lambda x: array_stats.ess(x, method="bulk"), np.argmin),
        (
            "tail ESS",
            least,
            lambda x: array_stats.ess(x, method="tail", prob=(0.05, 0.95)),
            np.argmin,
        ),
    ):
        missing = several if one and name == "R-hat" else why
        if missing:
            checks.append(_not_computed(name, limit, missing))
            continue
        values = np.array([float(measure(x)) for _, x in entries])
        # What is not a number is the worst.
        k = int(np.argmax(np.isnan(values)) if np.isnan(values).any() else worst(values))
        value, where = values[k], entries[k][0]
        good = value <= limit if name == "R-hat" else value > limit
        shown = f"{value:.3f}" if name == "R-hat" else f"{value:.0f}"
        bound = f"at most {limit:g}" if name == "R-hat" else f"more than {limit:g}"
        checks.append(_judged(name, good, value, limit, where, shown, bound))
    return checks


def _entries(samples: Mapping[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
    """Every entry of every parameter, (chain, draw), but for those that are constant in an array of
    which others are not (the zeros of a triangular matrix)."""
    found = []
    for name, x in samples.items():
        x = np.asarray(x, float)
        flat = x.reshape(*x.shape[:2], -1)
        moves = ~(np.ptp(flat, axis=(0, 1)) == 0)
        for i, index in enumerate(np.ndindex(x.shape[2:])):
            label = f"{name}[{', '.join(map(str, index))}]" if index else name
            if moves[i] or not moves.any():
                found.append((label, flat[..., i]))
    return found


def _divergences(statistics: Mapping[str, np.ndarray], applies: bool) -> SamplingCheck:
    name = "divergences"
    if not applies:
        return _inapplicable(name, 0)
    if "diverging" not in statistics:
        return _not_computed(
            name,
            0,
            "no `diverging` was recorded: mcmc.run(..., extra_fields=(...)) with "
            '"hmc_state.diverging" of HMCGibbs, else "diverging"',
        )
    diverging = statistics["diverging"]
    count = int(diverging.sum())
    worst = int(diverging.reshape(len(diverging), -1).sum(1).argmax())
    where = f"chain {worst}" if count else ""
    shown = f"{count} of {diverging.size} draws"
    return _judged(name, count == 0, count, 0, where, shown, "none")


def _energy(statistics: Mapping[str, np.ndarray], applies: bool, limit: float) -> SamplingCheck:
    name = "E-BFMI"
    if not applies:
        return _inapplicable(name, limit)
    if "energy" not in statistics:
        return _not_computed(
            name,
            limit,
            'no `energy` was recorded: mcmc.run(..., extra_fields=("energy",)), of HMCGibbs '
            '"hmc_state.energy"',
        )
    energy = np.asarray(statistics["energy"], float)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.square(np.diff(energy, axis=1)).mean(1) / energy.var(1)
    k = int(np.argmax(np.isnan(values)) if np.isnan(values).any() else np.argmin(values))
    value = float(values[k])
    bound = f"more than {limit:g}"
    return _judged(name, value > limit, value, limit, f"chain {k}", f"{value:.2f}", bound)


def _judged(
    name: str, good: bool, value: float, limit: float, where: str, shown: str, bound: str
) -> SamplingCheck:
    place = f" ({where})" if where else ""
    if good:
        text = f"{name} {shown}{place}" if name != "divergences" else "no divergences"
        return SamplingCheck(name, "passed", float(value), limit, where, text)
    text = f"{shown}{place}, expected {bound}; {_ADVICE[name]}"
    return SamplingCheck(name, "failed", float(value), limit, where, text)


def _not_computed(name: str, limit: float, why: str) -> SamplingCheck:
    return SamplingCheck(name, "not computed", float("nan"), limit, "", f"not computed: {why}")


def _inapplicable(name: str, limit: float) -> SamplingCheck:
    text = f"{name} does not apply to a sampler without trajectories"
    return SamplingCheck(name, "does not apply", float("nan"), limit, "", text)


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"
