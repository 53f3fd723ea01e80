"""Laplace's approximation: a Gaussian at the mode of a posterior, where it is one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float
from numpyro.distributions import biject_to
from numpyro.infer import init_to_median

from filterdyn._checks import check_count, check_key
from filterdyn._groups import in_groups
from filterdyn.inference.densities import densities_of
from filterdyn.inference.unconstrained import Call, constrained, start_point, trace_at

_OWNER = "inference.laplace"
_BATCH = 64


@dataclass(frozen=True)
class Laplace:
    """A Gaussian at the mode, in the unconstrained space of the parameters.

    - `mode`: the parameters at the mode, by name (with what the model calls `deterministic`). It is the
      mode in the unconstrained space: that of the logarithm of a positive parameter;
    - `samples`: draws (num_samples, ...) by name, inside the limits of the parameters;
    - `log_evidence`: the log-density of the data, log p(y, z) + P/2 log 2 pi - 1/2 log det(Hessian);
    - `names`: the P coordinates; `location` (P,) and `cov` (P, P): the Gaussian;
    - `prior_share` (P,): of the directions in which the data count least, first; `cov` relative to what it
      would be without the data, in [0, 1]: 1 is a direction about which the data say nothing;
    - `directions` (P, P): these directions, in rows, each scaled to one standard deviation;
    - `decrement`: by how much the log-density may still rise, in nats; `steps`: of the optimiser.
    """

    mode: dict[str, np.ndarray]
    samples: dict[str, np.ndarray]
    log_evidence: float
    names: tuple[str, ...]
    location: np.ndarray
    cov: np.ndarray
    prior_share: np.ndarray
    directions: np.ndarray
    decrement: float
    steps: int

    def __str__(self) -> str:
        silent = int((self.prior_share > 0.9).sum())
        lines = [
            f"Laplace: {len(self.names)} parameters, log evidence {self.log_evidence:.2f}, "
            f"{silent} directions that the data leave as the prior has them"
        ]
        for name, x in self.samples.items():
            flat = x.reshape(len(x), -1)
            if flat.shape[1] == 1:
                lines.append(f"  {name} = {flat.mean():.4g} +- {flat.std():.2g}")
        return "\n".join(lines)


def laplace(
    model: Callable[..., Any],
    *args: Any,
    key: Array,
    num_samples: int = 1000,
    steps: int = 500,
    tolerance: float = 1e-6,
    start: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Laplace:
    """Laplace's approximation of the posterior of a NumPyro model: the mode by L-BFGS and Newton steps,
    the Hessian of the log-density there, and draws.

    It is made in the space in which parameters have no limits, so that draws keep them. NumPyro's
    `AutoLaplaceApproximation` is the same Gaussian as a guide for `SVI`; where the Hessian is not
    positive definite it warns and draws the mode alone. This function finds the mode too, refuses what is
    no mode, names directions that are not identified, and has the evidence.

    **Arguments:**

    - `model`, `*args`, `**kwargs`: the NumPyro model and what it is called with, the data included;
    - `key`: a JAX random key; `num_samples`: how many draws;
    - `steps`: of L-BFGS at most; `tolerance`: the `decrement` in nats with which the mode is found;
    - `start`: parameters to start at, by default the median of the prior.

    **Returns** a `Laplace`, whose `samples` are ready for `fd.to_datatree`.

    **Raises:** `ValueError` if the log-density is not finite at the start; if the Hessian at the end is not
    positive definite, with the directions in words; if the mode is not found in `steps`; and for
    discrete parameters, or none.

    Reference: Tierney, Kadane 1986; MacKay 1992 (networks).
    """
    check_key(_OWNER, key)
    num_samples = check_count(_OWNER, "num_samples", num_samples)
    steps = check_count(_OWNER, "steps", steps)
    call = Call(model, args, kwargs)
    key_start, key_model, key_draw = jax.random.split(key, 3)
    point = start_point(_OWNER, call, key_start, init_to_median(num_samples=15))
    if start is not None:
        point |= _placed(call, point, start)
    flat, unravel = ravel_pytree(point)
    names = coordinates(point)

    def potential(flat: Array) -> Array:
        return -densities_of(trace_at(call, unravel(flat), key_model)).joint

    def prior_potential(flat: Array) -> Array:
        return -densities_of(trace_at(call, unravel(flat), key_model)).prior

    flat, taken = jax.jit(lambda flat: _descend(potential, flat, steps))(flat)
    flat, value, hessian, decrement = _polish(potential, flat, names, tolerance)
    if decrement > max(tolerance, 1e3 * float(jnp.finfo(flat.dtype).eps)):
        raise ValueError(
            f"{_OWNER}: after {int(taken)} steps the log-density may still rise by {decrement:.2g} nats; "
            "give more `steps`, or a better `start`"
        )
    factor = np.linalg.cholesky(hessian)
    inverse = np.linalg.inv(factor)
    cov = inverse.T @ inverse
    log_evidence = (
        0.5 * len(flat) * np.log(2 * np.pi) - value - float(np.log(np.diag(factor)).sum())
    )
    prior_hessian = np.asarray(jax.jit(jax.hessian(prior_potential))(flat), float)
    share, axes = np.linalg.eigh(inverse @ prior_hessian @ inverse.T)

    def draw(normal: Array) -> dict[str, Array]:
        return constrained(call, unravel(flat + jnp.asarray(inverse.T, flat.dtype) @ normal))

    normals = jax.random.normal(key_draw, (num_samples, len(flat)), flat.dtype)
    many = jax.jit(lambda x: in_groups(draw, x, min(_BATCH, num_samples)))
    arrays = lambda tree: {name: np.asarray(x) for name, x in tree.items()}
    return Laplace(
        arrays(constrained(call, unravel(flat))),
        arrays(many(normals)),
        log_evidence,
        names,
        np.asarray(flat),
        cov,
        np.clip(share[::-1], 0.0, 1.0),
        (inverse.T @ axes).T[::-1],
        decrement,
        int(taken),
    )


def coordinates(point: Mapping[str, Array]) -> tuple[str, ...]:
    """A name for each entry of the parameters, in the order of `ravel_pytree`."""
    names: list[str] = []
    for name in sorted(point):
        shape = jnp.shape(point[name])
        names += [
            f"{name}[{', '.join(map(str, index))}]" if index else name
            for index in np.ndindex(*shape)
        ]
    return tuple(names)


def _placed(call: Call, point: Mapping[str, Array], start: Mapping[str, Any]) -> dict[str, Array]:
    """**Raises:** `KeyError` for a name that is no parameter."""
    unknown = set(start) - set(point)
    if unknown:
        raise KeyError(
            f"{_OWNER}: `start` has {sorted(unknown)}; the parameters are {sorted(point)}"
        )
    sites = trace_at(call, point, jax.random.key(0)).sites
    invert = lambda name: biject_to(sites[name]["fn"].support).inv(
        jnp.asarray(start[name], point[name].dtype)
    )
    return {name: jnp.broadcast_to(invert(name), point[name].shape) for name in start}


def _descend(
    potential: Callable[[Array], Array], flat: Float[Array, " P"], steps: int
) -> tuple[Float[Array, " P"], Array]:
    """L-BFGS until the gradient is that of rounding, or nothing moves any more."""
    rule = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(potential)
    small = 1e2 * float(jnp.finfo(flat.dtype).eps)

    def again(carry: Any) -> Array:
        i, _, _, size, moved = carry
        return (i < steps) & (size > small) & moved

    def step(carry: Any) -> Any:
        i, flat, state, _, _ = carry
        value, grad = value_and_grad(flat, state=state)
        updates, state = rule.update(grad, state, flat, value=value, grad=grad, value_fn=potential)
        new = optax.apply_updates(flat, updates)
        fine = jnp.isfinite(new).all()
        new = jnp.where(fine, new, flat)
        size = jnp.linalg.norm(grad) / (1.0 + jnp.abs(value))
        return i + 1, new, state, size, fine & (new != flat).any()

    first = (0, flat, rule.init(flat), jnp.asarray(jnp.inf, flat.dtype), jnp.asarray(True))
    end = jax.lax.while_loop(again, step, first)
    return end[1], jnp.asarray(end[0])


def _polish(
    potential: Callable[[Array], Array], flat: Array, names: tuple[str, ...], tolerance: float
) -> tuple[Array, float, np.ndarray, float]:
    """Newton steps, as long as they are downhill; the potential and its Hessian at the end, and
    g' H^-1 g / 2.

    **Raises:** `ValueError` if the potential is not finite, or the Hessian not positive definite.
    """

    @jax.jit
    def look(flat: Array) -> tuple[Array, Array, Array]:
        return potential(flat), jax.grad(potential)(flat), jax.hessian(potential)(flat)

    value, slope, hessian = (np.asarray(x, float) for x in look(flat))
    if not np.isfinite(value):
        at = {name: float(x) for name, x in zip(names[:6], flat, strict=False)}
        raise ValueError(
            f"{_OWNER}: the log-density of `model` is not finite where the search ended (unconstrained: "
            f"{at}); give another `start`"
        )
    for _ in range(5):
        _check_positive(hessian, names)
        step = np.linalg.solve(hessian, slope)
        if 0.5 * slope @ step <= 1e-3 * tolerance:
            break
        there = flat - jnp.asarray(step, flat.dtype)
        found = [np.asarray(x, float) for x in look(there)]
        if not np.isfinite(found[0]) or found[0] > value:
            break
        flat, (value, slope, hessian) = there, found
    _check_positive(hessian, names)
    return flat, float(value), hessian, float(0.5 * slope @ np.linalg.solve(hessian, slope))


def _check_positive(hessian: np.ndarray, names: tuple[str, ...]) -> None:
    """**Raises:** `ValueError` with the directions in which the log-density does not fall."""
    if not np.isfinite(hessian).all():
        raise ValueError(
            f"{_OWNER}: the Hessian of the log-density has entries that are not finite"
        )
    hessian = 0.5 * (hessian + hessian.T)
    diagonal = np.abs(np.diag(hessian))
    scale = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    sizes, axes = np.linalg.eigh(hessian / scale / scale[:, None])
    flat = sizes <= 1e-10 * max(float(np.abs(sizes).max()), 1.0)
    if not flat.any():
        return
    words = []
    for size, axis in zip(sizes[flat], (axes / scale[:, None])[:, flat].T, strict=True):
        axis = axis / np.abs(axis).max()
        parts = [f"{names[i]} {axis[i]:+.2g}" for i in np.flatnonzero(np.abs(axis) > 0.05)[:6]]
        words.append(f"{', '.join(parts)} (curvature {size:.1e})")
    raise ValueError(
        f"{_OWNER}: the Hessian of the log-density is not positive definite, so there is no Gaussian at "
        f"this point; not identified: {'; '.join(words)}. Give these a prior that has one, or leave "
        "some of them out"
    )
