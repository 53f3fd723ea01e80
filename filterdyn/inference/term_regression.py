"""A regression of rates of change on a library of terms."""

from typing import Any, NamedTuple, Protocol

import equinox as eqx
import numpy as np
from jaxtyping import Float

from filterdyn._checks import as_numbers, check_shape
from filterdyn.inference.terms import TermLibrary, checked_points

#: Errors have at least this part of their largest variance in every direction.
_LEAST = 1e-9

Matrix = np.ndarray


class ErrorCovariance(Protocol):
    """What is known of the errors of a regression."""

    def covariance(self, i: int, coefficients: Float[Matrix, " p"]) -> Float[Matrix, "n n"]:
        """The covariance of the errors of equation `i`, whose terms have these coefficients."""
        ...

    @property
    def depends(self) -> bool:
        """Is it another one for other coefficients?"""
        ...


class Equation(NamedTuple):
    """One equation, b = A c + e with independent errors of one variance: 1 where `unit`, else unknown.
    `log_det` is that of the covariance of the errors before they were made independent."""

    A: Float[Matrix, "m p"]
    b: Float[Matrix, " m"]
    unit: bool
    log_det: float = 0.0


class Constant:
    """Errors whose covariances (dx, n, n) are given."""

    depends = False

    def __init__(self, covariances: Float[Matrix, "dx n n"]):
        self._covariances = covariances

    def covariance(self, i: int, coefficients: Float[Matrix, " p"]) -> Float[Matrix, "n n"]:
        return self._covariances[i]


class TermRegression(eqx.Module):
    """targets[:, i] = design @ c_i + errors, for every state i: what `thresholded_least_squares` and
    `horseshoe_regression` solve for sparse coefficients c_i.

    - `design` (n, p): the terms of the library, in each row at one state (`pointwise_regression`), or
      integrated over one stretch of time (`weak_regression`);
    - `targets` (n, dx): the rates of change that they make up;
    - `errors`: what is known of the errors, `None` where they are independent with one unknown variance
      an equation.
    """

    library: TermLibrary
    design: Float[Matrix, "n p"]
    targets: Float[Matrix, "n dx"]
    errors: ErrorCovariance | None = eqx.field(static=True)

    def equation(self, i: int, coefficients: Float[Matrix, " p"] | None = None) -> Equation:
        """That of state `i`, with errors made independent by their covariance at these coefficients
        (default: 0)."""
        b = self.targets[:, i]
        if self.errors is None:
            return Equation(self.design, b, False)
        if coefficients is None:
            coefficients = np.zeros(self.design.shape[1])
        return _whitened(self.design, b, self.errors.covariance(i, coefficients))


def _whitened(A: Matrix, b: Matrix, covariance: Matrix) -> Equation:
    covariance = 0.5 * (covariance + covariance.T)
    least = _LEAST * np.diag(covariance).max()
    root = np.linalg.cholesky(covariance + least * np.eye(len(b)))
    white = np.linalg.solve(root, np.column_stack([A, b]))
    return Equation(white[:, :-1], white[:, -1], True, 2.0 * float(np.log(np.diag(root)).sum()))


def pointwise_regression(
    library: TermLibrary,
    states: Any,
    values: Any,
    inputs: Any = None,
    times: Any = None,
    *,
    covariance: Any = None,
) -> TermRegression:
    """The regression of the values of a vector field at known states: those of a network that was
    trained as the unknown part of a model (along smoothed states), or of measured rates.

    **Arguments:**

    - `states` (n, dx); `values` (n, dx), dx/dt or what is not known of it; `inputs` (n, du) and `times`
      (n,) if terms look at them. Rows with a NaN are left out;
    - `covariance` of the errors of `values`: a variance, variances (dx,) or (n, dx), or one (n, n) or
      (dx, n, n), such as the posterior covariance of a network's outputs. `None`: errors are
      independent, of one unknown variance an equation. What a network gets wrong is alike in
      neighbouring states: with a covariance that says so, fewer wrong terms are found.

    **Raises:** `ValueError` for shapes that disagree, and for a covariance that is not positive.
    """
    owner = "inference.pointwise_regression"
    states, inputs, times = checked_points(library, states, inputs, times)
    values = as_numbers(owner, "values", values).astype(float)
    values = values[:, None] if values.ndim == 1 else values
    check_shape(owner, "values", values, states.shape, "those of `states`")
    design = np.asarray(library.evaluate(states, inputs, times), float)
    kept = np.isfinite(values).all(1) & np.isfinite(design).all(1)
    if not kept.any():
        raise ValueError(f"{owner}: `values` and the terms are finite in no row together")
    errors = None
    if covariance is not None:
        known = _full(
            owner, as_numbers(owner, "covariance", covariance).astype(float), values.shape
        )
        errors = Constant(known[:, kept][:, :, kept])
    return TermRegression(library, design[kept], values[kept], errors)


def _full(owner: str, covariance: Matrix, shape: tuple[int, int]) -> Float[Matrix, "dx n n"]:
    """The covariance (n, n) of every column."""
    n, dx = shape
    if covariance.shape in ((n, n), (dx, n, n)):
        full = np.broadcast_to(covariance, (dx, n, n))
    elif covariance.shape in ((), (dx,), (n, dx)):
        variances = np.broadcast_to(covariance, shape)
        full = np.stack([np.diag(column) for column in variances.T])
    else:
        raise ValueError(
            f"{owner}: `covariance` has shape {covariance.shape}; expected (), ({dx},), ({n}, {dx}), "
            f"({n}, {n}) or ({dx}, {n}, {n})"
        )
    if not np.isfinite(full).all() or (np.diagonal(full, axis1=1, axis2=2) <= 0).any():
        raise ValueError(f"{owner}: `covariance` has variances that are not positive numbers")
    least = np.linalg.eigvalsh(0.5 * (full + full.swapaxes(1, 2)))[:, 0]
    if (least < -1e-8 * np.diagonal(full, axis1=1, axis2=2).max(1)).any():
        raise ValueError(
            f"{owner}: `covariance` has an eigenvalue {least.min():.3g}; expected a covariance, which has "
            "none below 0"
        )
    return full
