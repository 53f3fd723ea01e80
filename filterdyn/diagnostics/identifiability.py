"""Can the data tell the parameters apart? The Fisher information and the directions it does not see."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from filterdyn.diagnostics.parameters import Parameters, flatten
from filterdyn.filters import AbstractFilter
from filterdyn.filters import filter as run_filter
from filterdyn.model import StateSpaceModel
from filterdyn.series import Series
from filterdyn.status import Status


@dataclass(frozen=True)
class Identifiability:
    """The Fisher information of named parameters.

    - `information` (P, P), in the order of `names`;
    - `eigenvalues` (ascending) and `eigenvectors` (columns): of the information with its diagonal
      scaled to one, so that units do not matter;
    - `rank`, and `condition`: largest over smallest eigenvalue;
    - `directions`: for each direction that cannot be identified, by how much each parameter in it
      changes (the first named by its own size, or by 1 where it is 0) without any change in the data;
    - `standard_errors` (P,): infinite for the parameters of such a direction;
    - `method`: how the information was computed.
    """

    names: tuple[str, ...]
    values: np.ndarray
    information: np.ndarray
    eigenvalues: np.ndarray
    eigenvectors: np.ndarray
    rank: int
    condition: float
    directions: tuple[dict[str, float], ...]
    standard_errors: np.ndarray
    method: str

    @property
    def identifiable(self) -> bool:
        """Is every parameter seen by the data (to first order)?"""
        return not self.directions

    def __str__(self) -> str:
        lines = [
            f"Fisher information ({self.method}): rank {self.rank} of {len(self.names)}, condition "
            f"{self.condition:.3g} (scaled)"
        ]
        for direction in self.directions:
            lines.append("not identifiable: " + self._in_words(direction))
        for name, value, error in zip(self.names, self.values, self.standard_errors, strict=True):
            lines.append(f"  {name} = {value:.4g} +- {error:.2g}")
        return "\n".join(lines)

    def _in_words(self, direction: dict[str, float]) -> str:
        if len(direction) == 1:
            return f"{next(iter(direction))} has no influence on the data"
        at = dict(zip(self.names, self.values, strict=True))
        parts = [
            f"{name} {change / abs(at[name]):+.2%}" if at[name] else f"{name} {0.01 * change:+.3g}"
            for name, change in ((n, 0.01 * c if at[n] else c) for n, c in direction.items())
        ]
        return ", ".join(parts) + " together change nothing"


def identifiability(
    function: Callable[[Any], Any],
    parameters: Any,
    series: Series | None = None,
    filter: AbstractFilter | None = None,
    *,
    tolerance: float | None = None,
    t0: Any = None,
    u0: Any = None,
) -> Identifiability:
    """The Fisher information of a model's parameters, its rank, and what it does not see.

    **Arguments:**

    - `function(parameters)` returns one of three things, best first:
      a `StateSpaceModel`: the information is the expected one of each row given those before it,
      sum_t dv^T S^-1 dv + tr(S^-1 dS S^-1 dS) / 2 with innovations v of covariance S, and holds
      anywhere;
      log-likelihoods of independent or successive rows (T,): the sum of the outer products of their
      gradients, which holds near the truth, its null directions anywhere;
      a log-likelihood (): minus its Hessian, which is an information only at the maximum;
    - `parameters`: a dict (or any tree) of numbers and arrays, the point that is judged;
    - `series`, `filter`: needed if `function` returns a model;
    - `tolerance`: eigenvalues below it times the largest count as zero (default the square root of
      the precision).

    **Raises:** `ValueError` if the filter fails at `parameters`, or what `function` returns is of
    another kind.
    """
    owner = "identifiability"
    flat = flatten(owner, parameters)
    returned = jax.eval_shape(lambda v: _kind_of(function(flat.unravel(v))), flat.vector)
    if returned is None:
        if series is None or filter is None:
            raise ValueError(
                f"{owner}: `function` returns a model, so `series` and `filter` are needed"
            )
        information = _of_model(function, flat, series, filter, t0, u0)
        method = "expected, from innovations"
    elif returned.ndim == 1:
        rows = jax.jit(jax.jacfwd(lambda v: function(flat.unravel(v))))(flat.vector)
        scores = np.asarray(rows, float)
        information, method = scores.T @ scores, "outer products of scores"
    elif returned.ndim == 0:
        hessian = jax.jit(jax.hessian(lambda v: function(flat.unravel(v))))(flat.vector)
        information, method = -np.asarray(hessian, float), "minus the Hessian"
    else:
        raise ValueError(
            f"{owner}: `function` returned shape {returned.shape}; expected a model, a log-likelihood () "
            "or log-likelihoods (T,)"
        )
    if not np.isfinite(information).all():
        raise ValueError(f"{owner}: derivatives at `parameters` are not finite")
    if tolerance is None:
        tolerance = float(jnp.finfo(flat.vector.dtype).eps) ** 0.5
    return _judged(flat, information, tolerance, method)


def _kind_of(returned: Any) -> Any:
    return None if isinstance(returned, StateSpaceModel) else jnp.asarray(returned)


def _of_model(
    function: Callable[[Any], StateSpaceModel],
    flat: Parameters,
    series: Series,
    filter: AbstractFilter,
    t0: Any,
    u0: Any,
) -> np.ndarray:
    def innovations(vector: Any) -> Any:
        result = run_filter(function(flat.unravel(vector)), series, filter, t0=t0, u0=u0)
        pair = result.innovations, result.innovation_covs
        return pair, (pair, result.status)

    (dv, ds), ((v, s), status) = jax.jit(jax.jacfwd(innovations, has_aux=True))(flat.vector)
    if int(status) != Status.OK:
        raise ValueError(f"identifiability: the filter fails there ({Status(int(status)).name})")
    seen = ~np.isnan(np.asarray(v))
    both = seen[:, :, None] & seen[:, None, :]
    s = np.where(both, np.asarray(s, float), np.eye(s.shape[-1]))
    dv = np.where(seen[..., None], np.asarray(dv, float), 0.0)
    ds = np.where(both[..., None], np.asarray(ds, float), 0.0)
    inverse = np.linalg.inv(s)
    of_mean = np.einsum("tip,tij,tjq->pq", dv, inverse, dv)
    relative = np.einsum("tij,tjkp->tikp", inverse, ds)
    return of_mean + 0.5 * np.einsum("tijp,tjiq->pq", relative, relative)


def _judged(
    flat: Parameters, information: np.ndarray, tolerance: float, method: str
) -> Identifiability:
    values = np.asarray(flat.vector, float)
    own = np.where(values == 0, 1.0, np.abs(values))
    information = 0.5 * (information + information.T)
    diagonal = np.diag(information)
    relative = diagonal * own**2
    silent = relative <= tolerance**2 * max(relative.max(), 0.0)
    scale = np.sqrt(np.where(silent, 1.0, diagonal))
    scaled = np.where(silent[:, None] | silent, 0.0, information / scale / scale[:, None])
    sizes, axes = np.linalg.eigh(scaled)
    if sizes[0] < -1e-3 * np.abs(sizes).max() or (relative < -1e-3 * np.abs(relative).max()).any():
        raise ValueError(
            f"identifiability: the information ({method}) is not positive semi-definite, so `parameters` "
            "is not at a maximum of the likelihood; let `function` return a model, or the "
            "log-likelihoods of the rows"
        )
    null = sizes <= tolerance * max(float(sizes[-1]), 0.0)
    directions = []
    for row in _sparse_basis(axes[:, null].T):
        change = np.where(np.abs(row) > 1e-3 * np.abs(row).max(), row, 0.0) / scale
        change /= np.abs(change / own).max()
        change *= np.sign(change[np.flatnonzero(change)[0]])
        directions.append({flat.names[i]: float(change[i]) for i in np.flatnonzero(change)})
    kept = axes[:, ~null]
    variance = (kept**2 / np.where(null, 1.0, sizes)[~null]).sum(1) / scale**2
    lost = np.isin(flat.names, [name for direction in directions for name in direction])
    return Identifiability(
        flat.names,
        values,
        information,
        sizes,
        axes,
        int((~null).sum()),
        float(sizes[-1] / sizes[0]) if sizes[0] > 0 else np.inf,
        tuple(directions),
        np.where(lost, np.inf, np.sqrt(variance)),
        method,
    )


def _sparse_basis(rows: np.ndarray) -> np.ndarray:
    """Another basis of the same space with many zeros (reduced echelon form, largest pivots), so that
    each direction names few parameters."""
    rows = rows.copy()
    for k in range(len(rows)):
        pivot = np.unravel_index(np.abs(rows[k:]).argmax(), rows[k:].shape)
        i, j = k + int(pivot[0]), int(pivot[1])
        rows[[k, i]] = rows[[i, k]]
        rows[k] /= rows[k, j]
        for other in range(len(rows)):
            if other != k:
                rows[other] -= rows[other, j] * rows[k]
    return rows
