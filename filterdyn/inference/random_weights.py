"""Weights of a network as random variables of a NumPyro model."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro import handlers
from numpyro.contrib.module import random_eqx_module

from filterdyn.fields import Normalization

Module = TypeVar("Module", bound=eqx.Module)
#: A number (the scale of `fan_in`), a distribution, distributions by name, or a function of name and shape.
Prior: TypeAlias = (
    float | Array | dist.Distribution | Mapping[str, Any] | Callable[[str, tuple[int, ...]], Any]
)
Pick = Callable[[Any], Any]


def random_weights(
    name: str, module: Module, prior: Prior = 1.0, *, where: Pick | None = None
) -> Module:
    """The module with weights that NumPyro samples: one site for each array, named
    `name.path` such as `net.weights[0]`.

    To be called in a NumPyro model. It is NumPyro's `random_eqx_module` on the chosen leaves of the
    module. That function by itself samples every floating array, the centres and scales of a field
    (`Normalization`) among them, and leaves the arrays without a prior as parameters, which SVI trains
    and NUTS does not. Here arrays that are not chosen stay as they are.

    **Arguments:**

    - `module`: any Equinox module, such as `fd.fields.MLP` or a `UniversalField`;
    - `prior`: a number s (it may be a random variable itself) for independent N(0, s^2 / n) in matrices
      (m, n), n inputs, and N(0, s^2) in vectors, under which what a layer passes on keeps its size
      whatever its width (Neal 1996); or a distribution for all arrays; or a dictionary of
      distributions by path; or a function of path and shape that returns one;
    - `where`: picks leaves, such as `lambda net: (net.weights[-1], net.biases[-1])` for the last layer.
      By default all floating arrays but those of a `Normalization`.

    **Raises:** `TypeError` if `module` is no Equinox module or `where` no function; `ValueError` if it
    picks nothing; `KeyError` if a dictionary of priors misses a chosen array, or has other names.
    """
    owner = "inference.random_weights"
    chosen, rest = _split(owner, module, where)
    names = list(_by_path(chosen))
    if isinstance(prior, Mapping):
        if set(names) != set(prior):
            raise KeyError(
                f"{owner}: `prior` has the names {sorted(prior)}; expected exactly {sorted(names)}"
            )
        given: Any = dict(prior)
    elif isinstance(prior, dist.Distribution) or callable(prior):
        given = prior
    else:
        scale = jnp.asarray(prior)
        if scale.shape != ():
            raise ValueError(f"{owner}: `prior` has shape {scale.shape}; expected one number")
        given = lambda _, shape: dist.Normal(0.0, scale / jnp.sqrt(1.0 * fan_in(shape)))
    # (The weights before inference are no parameters of the model.)
    with handlers.block(hide=[f"{name}$params"]):
        return eqx.combine(random_eqx_module(name, chosen, given, "."), rest)


def weights_of(name: str, module: Any, *, where: Pick | None = None) -> dict[str, Array]:
    """The weights that a module has, by the names of the sites of `random_weights(name, module)`.

    With these a chain may start where `fd.fit` ended: `init_to_value(values=weights_of("net", fitted))`.

    **Raises:** as `random_weights`.
    """
    chosen = _split("inference.weights_of", module, where)[0]
    return {f"{name}.{path}": leaf for path, leaf in _by_path(chosen).items()}


def with_weights(name: str, module: Module, draw: Mapping[str, Any]) -> Module:
    """The module with the weights of one draw of the posterior, the sites `name. ...` of it.

    For all draws: `jax.vmap(lambda draw: with_weights("net", net, draw)(t, x, u))(samples)`.

    **Raises:** `KeyError` if no site of that name is in `draw`, or one is no array of the module;
    `ValueError` for an array of another shape, as all draws at once have.
    """
    owner, prefix = "inference.with_weights", f"{name}."
    drawn = {
        n.removeprefix(prefix): jnp.asarray(x) for n, x in draw.items() if n.startswith(prefix)
    }
    leaves = _by_path(eqx.filter(module, eqx.is_inexact_array))
    if not drawn or set(drawn) - set(leaves):
        raise KeyError(
            f"{owner}: `draw` has {sorted(drawn) or 'nothing'} under {prefix!r}; expected some of "
            f"{sorted(leaves)}"
        )
    for path, leaf in drawn.items():
        if leaf.shape != leaves[path].shape:
            raise ValueError(
                f"{owner}: {prefix + path!r} has shape {leaf.shape}; expected {leaves[path].shape}, one "
                "draw (use jax.vmap for many)"
            )
    return jax.tree_util.tree_map_with_path(lambda path, x: drawn.get(_name(path), x), module)


def fan_in(shape: tuple[int, ...]) -> int:
    """The number of inputs of the layer whose weights have that shape; 1 for vectors."""
    return int(np.prod(shape[1:]))


def _name(path: Any) -> str:
    return str(jax.tree_util.keystr(path)[1:])


def _by_path(tree: Any) -> dict[str, Array]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _split(owner: str, module: Any, where: Pick | None) -> tuple[Any, Any]:
    """The chosen arrays of a module, and all else."""
    if not isinstance(module, eqx.Module):
        raise TypeError(
            f"{owner}: `module` is {type(module).__name__}; expected an Equinox module, such as "
            "fd.fields.MLP(dx, key=key)"
        )
    if where is None:
        is_scale = lambda x: isinstance(x, Normalization)
        spec = jax.tree.map(
            lambda x: False if is_scale(x) else eqx.is_inexact_array(x), module, is_leaf=is_scale
        )
    elif not callable(where):
        raise TypeError(
            f"{owner}: `where` is {type(where).__name__}; expected a function that picks leaves, such as "
            "lambda net: net.weights[-1]"
        )
    else:
        none = jax.tree.map(lambda _: False, module)
        spec = eqx.tree_at(lambda m: jax.tree.leaves(where(m)), none, replace_fn=lambda _: True)
    chosen, rest = eqx.partition(module, spec)
    chosen, others = eqx.partition(chosen, eqx.is_inexact_array)
    if not jax.tree.leaves(chosen):
        raise ValueError(f"{owner}: no floating array of `module` is chosen; `where` picks none")
    return chosen, eqx.combine(rest, others)
