"""Do a parameter of the physics and a network beside it explain the same thing?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.infer import MCMC

from filterdyn._groups import in_groups
from filterdyn.inference.draws import flattened, samples_of
from filterdyn.inference.orthogonality import projection

_OWNER = "confounding"
#: So many draws are looked at together.
_BATCH = 64


@dataclass(frozen=True)
class Confounding:
    """Parameters p of the physics against the projection c of the network onto their terms: the
    change of p that the network looks like on the visited states.

    - `names` (P,): of the parameters;
    - `projection` (draws, P): c in each draw, in units of the parameter;
    - `correlation` (P,): of p and c over the posterior. At -1 the data know their sum only;
    - `sd` (P,) of p, and `sd_of_sum` (P,) of p + c, which is what the data see;
    - `share`: of the network's square, what the terms of the physics could say as well (mean over draws).
    """

    names: tuple[str, ...]
    projection: np.ndarray
    correlation: np.ndarray
    sd: np.ndarray
    sd_of_sum: np.ndarray
    share: float

    def __str__(self) -> str:
        lines = [f"{self.share:.0%} of the network's square could be said by the known terms"]
        for i, name in enumerate(self.names):
            lines.append(
                f"  {name}: correlation with the network {self.correlation[i]:+.2f}, sd {self.sd[i]:.2g}, "
                f"of the sum {self.sd_of_sum[i]:.2g}"
            )
        return "\n".join(lines)


def confounding(
    mcmc_or_samples: MCMC | Mapping[str, Any],
    known: Callable[[Mapping[str, Any], Array], Array],
    residual: Callable[[Mapping[str, Any], Array], Array],
    states: Any,
    parameters: Sequence[str],
) -> Confounding:
    """How far draws of a posterior trade parameters of the physics for the network beside them.

    **Arguments:**

    - `mcmc_or_samples`: an `MCMC` after its run, or draws by name (of a guide, an ensemble, Laplace);
    - `known(draw, x) -> (k,)`, `residual(draw, x) -> (k,)`: physics and network at one draw (a dictionary)
      and one state (dx,); `fd.inference.with_weights` puts a draw into a network;
    - `states` (K, dx): states that were visited, such as smoothed ones;
    - `parameters`: names of scalars among the draws, on which `known` depends.

    The sensitivities are those at the posterior mean.

    **Returns** a `Confounding`; `fd.inference.orthogonality` is a prior that reduces it.

    **Raises:** `KeyError` for a name that the draws have not; `ValueError` for a parameter that is no
    scalar, for states without two axes, and where fewer than 3 draws are given.
    """
    drawn = flattened(samples_of(_OWNER, mcmc_or_samples)[0])
    states = jnp.asarray(states)
    if states.ndim != 2:
        raise ValueError(f"{_OWNER}: `states` has shape {states.shape}; expected (K, dx)")
    names = tuple(sorted(set(parameters)))
    for name in names:
        if name not in drawn:
            raise KeyError(f"{_OWNER}: `parameters` has {name!r}; the draws have {sorted(drawn)}")
        if drawn[name].ndim != 1:
            raise ValueError(
                f"{_OWNER}: {name!r} has shape {drawn[name].shape[1:]} in each draw; expected a scalar"
            )
    count = len(next(iter(drawn.values())))
    if count < 3 or not names:
        raise ValueError(
            f"{_OWNER}: got {count} draws of {len(names)} parameters; expected 3 draws or more of one "
            "parameter or more"
        )
    center = {name: jnp.asarray(x.mean(0)) for name, x in drawn.items()}
    at_center = {name: center[name] for name in names}

    def one(draw: dict[str, Array]) -> tuple[Array, Array]:
        physics = lambda values, x: known({**center, **values}, x)
        return projection(physics, at_center, lambda x: residual(draw, x), states)

    run = jax.jit(lambda draws: in_groups(one, draws, min(_BATCH, count)))
    found, shares = (np.asarray(x, float) for x in run(drawn))
    own = np.stack([drawn[name] for name in names], -1).astype(float)
    sd, of_network = own.std(0), found.std(0)
    both = ((own - own.mean(0)) * (found - found.mean(0))).mean(0)
    spread = sd * of_network
    correlation = both / np.where(spread > 0, spread, 1.0)
    return Confounding(names, found, correlation, sd, (own + found).std(0), float(shares.mean()))
