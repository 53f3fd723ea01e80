"""Statistical linear regression on sigma points: what unscented, cubature and Gauss-Hermite rules
share."""

import abc
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from filterdyn.beliefs import Gaussian
from filterdyn.linalg import PSD, mm, mv, triangularize, with_derivative_of
from filterdyn.linalg.cholesky import cholesky, only_derivative
from filterdyn.linearization.base import AbstractSpreadRule, Linearized

#: More pairs of points than this are refused.
_MOST_PAIRS = 20_000


class SigmaPoints(NamedTuple):
    """A symmetric rule for the standard normal in n dimensions: pairs +u, -u and perhaps the centre.

    Each pair has weight W_j (each of its points W_j / 2), with sum_j W_j u_j u_j^T = I, and the
    centre 1 - sum_j W_j, but 2 - sum_j W_j - `excess` in a covariance: `excess` is 1 for a rule with
    one set of weights, alpha^2 - beta for the unscented transform.
    """

    directions: np.ndarray  # (p, n)
    weights: np.ndarray  # (p,), positive
    centre: bool
    excess: float = 1.0

    @property
    def even_part(self) -> np.ndarray:
        """E (p, p) with E E^T = I - excess q q^T, q_j = sqrt(W_j). See `regress_on`."""
        q = np.sqrt(self.weights)
        total = q @ q
        left = max(1.0 - self.excess * total, 0.0)
        return np.eye(len(q)) - np.outer(q, q) * (1.0 - math.sqrt(left)) / total

    @property
    def odd_part(self) -> np.ndarray:
        """An orthonormal basis (p, p - n) of what is orthogonal to the rows of U, U = [sqrt(W_j) u_j]."""
        u = np.sqrt(self.weights)[:, None] * self.directions
        return np.linalg.qr(u, mode="complete")[0][:, self.directions.shape[1] :]


class AbstractSigmaPointRule(AbstractSpreadRule):
    """A rule that looks at a function at points spread as the belief is."""

    @abc.abstractmethod
    def points(self, dx: int) -> SigmaPoints:
        """The points for the standard normal in `dx` dimensions."""


def check_pairs(owner: str, dx: int, pairs: int, instead: str) -> None:
    """**Raises:** `ValueError` for a rule of more points than one can want."""
    if pairs > _MOST_PAIRS:
        raise ValueError(
            f"{owner}: the rule has more than {2 * _MOST_PAIRS} points for {dx} states ({instead})"
        )


def regress_on(
    rule: SigmaPoints, function: Callable[[Array], Any], belief: Gaussian, has_aux: bool = False
) -> Linearized:
    """The affine map that fits `function` best in mean square under the belief N(m, S S^T), by the
    points m +- S u_j and perhaps m.

    With z_j^+ and z_j^- the images of a pair, take the odd part o_j = (z_j^+ - z_j^-) / 2 and the
    even part g_j = (z_j^+ + z_j^-) / 2 - z_ref. The slope is B S^+, B = sum_j W_j o_j u_j^T. The
    regression leaves a covariance that splits in two:

    - the odd parts that B does not explain, O (I - U^T U) O^T with O = [sqrt(W_j) o_j] and
      U = [sqrt(W_j) u_j]. They vanish where there are as many pairs as states;
    - the even parts. With the reference at the centre, G = [sqrt(W_j) g_j] and mean z_0 + G q, the
      squares of the pairs and of the centre add up to G (I - excess q q^T) G^T. (Write the pairs as
      G - (G q) q^T and the centre, of covariance weight 2 - excess - q^T q, as G q.)

    Both are positive semi-definite in factored form, whatever the sign of the centre's weight, if
    excess q^T q <= 1; nothing is subtracted, and small alpha costs no large weights.
    """
    s, inverse = cholesky(belief.spread)
    dtype = belief.mean.dtype
    value, odd, even, aux = _images(rule, function, belief.mean, s, has_aux)
    b = _on_directions(rule, odd)
    error = mm(even, jnp.asarray(rule.even_part, dtype))
    if odd.shape[1] > len(s):
        unexplained = mm(odd, jnp.asarray(rule.odd_part, dtype))
        error = jnp.concatenate([error, unexplained], axis=1)
    spread = PSD(error, mm(error, error.T))
    return Linearized(value, slope_on(b, s, inverse), spread, aux)


def project_on(
    rule: SigmaPoints,
    function: Callable[[Array], Any],
    m: Float[Array, " n"],
    s: Float[Array, "n n"],
) -> tuple[Float[Array, " dz"], Float[Array, "dz n"]]:
    """E f(x) and E[f(x) xi^T] for x = m + S xi, xi standard normal."""
    value, odd, _, _ = _images(rule, function, m, s, False)
    return value, _on_directions(rule, odd)


def _on_directions(rule: SigmaPoints, odd: Float[Array, "dz p"]) -> Float[Array, "dz n"]:
    return mm(odd, jnp.asarray(np.sqrt(rule.weights)[:, None] * rule.directions, odd.dtype))


def _images(
    rule: SigmaPoints,
    function: Callable[[Array], Any],
    m: Float[Array, " n"],
    s: Float[Array, "n n"],
    has_aux: bool,
) -> tuple[Float[Array, " dz"], Float[Array, "dz p"], Float[Array, "dz p"], Any]:
    """The mean, the odd parts O, the even parts G and what else `function` gave."""
    dtype = m.dtype
    weights = jnp.asarray(rule.weights, dtype)
    roots = jnp.asarray(np.sqrt(rule.weights), dtype)
    arms = mm(jnp.asarray(rule.directions, dtype), s.T)
    p = len(arms)
    parts = [m + arms, m - arms, *([m[None]] if rule.centre else [])]
    points = jnp.concatenate(parts)
    z, aux = jax.vmap(lambda x: function(x) if has_aux else (function(x), None))(points)
    z = z.astype(dtype)
    plus, minus = z[:p], z[p : 2 * p]
    odd = (0.5 * (plus - minus) * roots[:, None]).T
    middle = 0.5 * (plus + minus)
    if rule.centre:
        even = middle - z[-1]
        value = z[-1] + mv(even.T, weights)
    else:
        value = mv(middle.T, weights)
        even = middle - value
    return value, odd, (even * roots[:, None]).T, aux


def slope_on(
    b: Float[Array, "dz n"], s: Float[Array, "n n"], inverse: Float[Array, "n n"]
) -> Float[Array, "dz n"]:
    """slope with slope S = B. Each round of the refinement makes one more order of the derivative
    right: with S^+ held fixed its error is multiplied by S S^+ - I, which vanishes but for its
    derivative."""
    value = mm(stop_gradient(b), inverse)
    smooth = value
    for _ in range(2):
        smooth = smooth + mm(only_derivative(b - mm(smooth, s)), inverse)
    return with_derivative_of(value, smooth)


def average_on(rule: SigmaPoints, function: Callable[[Array], Any], belief: Gaussian) -> Any:
    """The weighted mean of covariances over the points of a rule without a negative weight. One that
    does not depend on x is evaluated once."""
    m, dtype = belief.mean, belief.mean.dtype
    if not _depends(function, m):
        return function(m)
    s = cholesky(belief.spread).factor
    arms = mm(jnp.asarray(rule.directions, dtype), s.T)
    parts = [m + arms, m - arms]
    weights = np.concatenate([0.5 * rule.weights, 0.5 * rule.weights])
    if rule.centre:
        parts.append(m[None])
        weights = np.append(weights, 1.0 - rule.weights.sum())
    w = jnp.asarray(weights, dtype)
    each = jax.vmap(function)(jnp.concatenate(parts))
    mean = lambda x: jnp.tensordot(w, x.astype(dtype), 1, precision="highest")
    if not isinstance(each, PSD):
        return mean(each)
    columns = jnp.sqrt(w)[:, None, None] * jax.vmap(lambda cov: cov.root)(each)
    factor = triangularize(stop_gradient(jnp.concatenate(list(columns), axis=1)))
    return PSD(factor, with_derivative_of(mm(factor, factor.T), mean(each.matrix)))


def _depends(function: Callable[[Array], Any], x: Float[Array, " n"]) -> bool:
    """Does the output depend on x? (JAX refuses to leave a mapped output out of the map.)"""
    try:
        jax.eval_shape(jax.vmap(function, out_axes=None), x[None])
    except ValueError:
        return True
    return False
