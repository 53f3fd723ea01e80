"""Draws by NUTS as a function that JAX traces: what maps over data sets needs."""

from typing import Any

import jax
from jaxtyping import Array
from numpyro.infer import NUTS


def nuts_draws(num_warmup: int, num_draws: int, thinning: int, settings: dict[str, Any]) -> Any:
    """A function `(key, model, *args, **kwargs)` that returns draws by name, (num_draws, ...), and whether
    a transition diverged after the warm-up. One chain, in one scan, so that a step is compiled once."""

    def draw(key: Array, model: Any, *args: Any, **kwargs: Any) -> tuple[dict[str, Array], Array]:
        kernel = NUTS(model, **settings)
        state = kernel.init(key, num_warmup, model_args=args, model_kwargs=kwargs)

        def step(state: Any, _: None) -> tuple[Any, Any]:
            state = kernel.sample(state, args, kwargs)
            return state, (state.z, state.diverging)

        steps = num_warmup + num_draws * thinning
        _, (z, diverging) = jax.lax.scan(step, state, None, length=steps)
        z = jax.tree.map(lambda x: x[num_warmup + thinning - 1 :: thinning], z)
        constrain = kernel.postprocess_fn(args, kwargs)
        return jax.vmap(constrain)(z), diverging[num_warmup:].any()

    return draw
