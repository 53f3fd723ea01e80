"""A latent path as a function of standard normal numbers."""

from typing import Any

import numpyro
import numpyro.distributions as dist
from numpyro.infer.reparam import Reparam

from filterdyn.inference.latent_path import LatentPath


class PathReparam(Reparam):
    """A reparameterisation of `LatentPath` sites, non-centred: what is sampled are standard normal
    numbers (`<name>_start` and `<name>_moves`), and the path is what the model makes of them.

        model = numpyro.handlers.reparam(model, config={"x": fd.inference.PathReparam()})

    How far the path spreads then no longer depends on the noise parameters, so that HMC does not get
    stuck where they are small (Papaspiliopoulos, Roberts, Sköld 2007). With few and precise measurements
    the path as it is may be better. For SDEs with several solver steps in a gap, noise that does not reach
    every state, and repeated times, it is the one that works.
    """

    def __call__(self, name: str, fn: Any, obs: Any) -> tuple[None, Any]:
        """**Raises:** `TypeError` for another distribution and for a model whose path is no known function
        of standard normal numbers, `ValueError` for an observed site."""
        batch_shape = fn.batch_shape
        path, _, _ = self._unwrap(fn)
        if not isinstance(path, LatentPath):
            raise TypeError(
                f"PathReparam: the site {name!r} is a {type(path).__name__}; expected a LatentPath"
            )
        if obs is not None:
            raise ValueError(f"PathReparam: the site {name!r} is observed; expected a latent one")
        start, moves = (self._normals(shape, batch_shape) for shape in path.normals())
        start = numpyro.sample(f"{name}_start", start)
        moves = numpyro.sample(f"{name}_moves", moves)
        return None, path.driven_by(start, moves)

    @staticmethod
    def _normals(shape: tuple[int, ...], batch_shape: tuple[int, ...]) -> dist.Distribution:
        return dist.Normal(0.0, 1.0).expand([*batch_shape, *shape]).to_event(len(shape))
