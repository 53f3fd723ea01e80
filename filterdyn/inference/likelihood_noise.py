"""How noisy an estimated likelihood is, from which the number of particles follows."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import Array, Float

from filterdyn._checks import check_count, check_key
from filterdyn.inference.particle_likelihood import check_estimates, estimate
from filterdyn.inference.unconstrained import Call, unconstrained

_NAME = "log_likelihood_sd"


def log_likelihood_sd(
    model: Callable[..., Any],
    parameters: Mapping[str, Any],
    *args: Any,
    key: Array,
    replicates: int = 100,
    **kwargs: Any,
) -> Float[Array, ""]:
    """The standard deviation of the estimated log-likelihood of a NumPyro model at `parameters`, over
    `replicates` runs of its particle filter.

    `ParticleMetropolis` costs least per effective draw where it is 1 to 1.7 near the mode (Doucet, Pitt,
    Deligiannidis, Kohn 2015; Sherlock, Thiery, Roberts, Rosenthal 2015). The variance falls as one over
    the number of particles and grows with the length of the series.

    **Arguments:**

    - `model`, `*args`, `**kwargs`: as it is run, the data included;
    - `parameters`: values by name, of every parameter, inside their limits;
    - `key`: a JAX random key; `replicates` >= 2.

    **Raises:** `KeyError` for a parameter that is missing, and what `ParticleMetropolis` raises.
    """
    replicates = check_count(_NAME, "replicates", replicates)
    if replicates < 2:
        raise ValueError(f"{_NAME}: `replicates` is {replicates}; expected at least 2")
    check_key(_NAME, key)
    call = Call(model, args, kwargs)
    z = unconstrained(_NAME, call, parameters)
    check_estimates(_NAME, call, z)
    one = lambda key: estimate(call, z, key, with_paths=False).log_likelihood
    run = jax.jit(lambda keys: jax.lax.map(one, keys))
    return run(jax.random.split(key, replicates)).std(ddof=1)
