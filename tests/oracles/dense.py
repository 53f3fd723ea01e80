"""Linear-Gaussian models by brute force: write down the joint Gaussian of all states and all data,
and condition.

No recursion over time enters an answer, so nothing here can share a mistake with a filter. Cost
grows as (T dy)^3 and the covariance is formed explicitly: for short, well-conditioned problems.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rows:
    """A linear-Gaussian model written out row by row, inputs and offsets already folded in.

        x_0 ~ N(m0, P0),   x_{k+1} = F_k x_k + c_k + N(0, Q_k),   y_k = H_k x_k + d_k + N(0, R_k)

    `F, Q, c` have T - 1 rows, `H, R, d, y` have T; NaN in `y` is missing. The first `lead` rows
    carry no data and are left out of every answer (a prior that holds before the first
    observation).
    """

    m0: np.ndarray
    P0: np.ndarray
    F: np.ndarray
    Q: np.ndarray
    c: np.ndarray
    H: np.ndarray
    R: np.ndarray
    d: np.ndarray
    y: np.ndarray
    lead: int = 0


@dataclass(frozen=True)
class Answer:
    """What a filter and a smoother must say. `lag_one_cov[k]` is Cov(x_{k+1}, x_k | all data)."""

    log_likelihood: float
    log_likelihoods: np.ndarray
    predicted_mean: np.ndarray
    predicted_cov: np.ndarray
    filtered_mean: np.ndarray
    filtered_cov: np.ndarray
    smoothed_mean: np.ndarray
    smoothed_cov: np.ndarray
    lag_one_cov: np.ndarray


def observation_rows(H, R, D, d, inputs, count):
    """`H, R, d` with one row per time: constants are repeated, a function of time comes as a
    leading axis."""
    H, R = per_row(H, count, 2), per_row(R, count, 2)
    offset = np.zeros((count, H.shape[1])) if d is None else per_row(d, count, 1)
    if D is not None:
        offset = offset + np.einsum("tij,tj->ti", per_row(D, count, 2), inputs)
    return H, R, offset


def per_row(array, count, ndim):
    array = np.asarray(array)
    return np.broadcast_to(array, (count, *array.shape)) if array.ndim == ndim else array


def discrete_rows(
    m0,
    P0,
    F,
    Q,
    H,
    R,
    y,
    *,
    B=None,
    b=None,
    D=None,
    d=None,
    inputs=None,
    times=None,
    t0=None,
    u0=None,
):
    """Rows of a discrete-time model: one transition per row, none where a time repeats, one from
    `t0 < times[0]`.

    A matrix with a leading axis of length T varies in time: row k of `F, Q, B, b` leaves time k.
    (With `t0` they must be constant.)
    """
    count, dx = len(y), len(m0)
    F, Q = per_row(F, count, 2), per_row(Q, count, 2)
    c = np.zeros((count, dx)) if b is None else np.array(per_row(b, count, 1), dtype=float)
    early = t0 is not None and bool(t0 < times[0])
    if early:  # the row at t0 carries the prior and no data
        F, Q, c = (np.concatenate([a[:1], a]) for a in (F, Q, c))
    if B is not None:
        held = np.concatenate([np.atleast_2d(u0), inputs]) if early else inputs
        c = c + np.einsum("tij,tj->ti", per_row(B, len(F), 2), held)
    F, Q, c = F[:-1].copy(), Q[:-1].copy(), c[:-1].copy()
    if times is not None:
        repeated = np.concatenate([[False] * early, np.diff(times) == 0]).astype(bool)
        F[repeated], Q[repeated], c[repeated] = np.eye(dx), 0.0, 0.0
    H, R, offset = observation_rows(H, R, D, d, inputs, count)
    return with_lead(Rows(m0, P0, F, Q, c, H, R, offset, np.asarray(y)), early)


def with_lead(rows, early):
    """Puts a row without data in front of the observations when the prior holds before the first
    of them."""
    if not early:
        return rows
    H, R, d = (np.concatenate([a[:1], a]) for a in (rows.H, rows.R, rows.d))
    y = np.concatenate([np.full_like(rows.y[:1], np.nan), rows.y])
    return Rows(rows.m0, rows.P0, rows.F, rows.Q, rows.c, H, R, d, y, lead=1)


def joint_state(rows):
    """Mean (T dx,) and covariance (T dx, T dx) of the whole path before any data."""
    count, dx = len(rows.y), len(rows.m0)
    mean, cov = np.zeros((count, dx)), np.zeros((count, dx, count, dx))
    mean[0], cov[0, :, 0, :] = rows.m0, rows.P0
    for k in range(count - 1):
        F = rows.F[k]
        mean[k + 1] = F @ mean[k] + rows.c[k]
        cov[k + 1, :, : k + 1] = np.tensordot(F, cov[k, :, : k + 1], 1)
        cov[: k + 1, :, k + 1] = np.moveaxis(cov[k + 1, :, : k + 1], 0, -1)
        cov[k + 1, :, k + 1] = F @ cov[k, :, k] @ F.T + rows.Q[k]
    return mean.ravel(), cov.reshape(count * dx, count * dx)


def joint_observation(rows):
    """Mean, covariance and cross-covariance with the path of all data, as vectors of length T
    dy."""
    count, (dy, dx) = len(rows.y), rows.H.shape[1:]
    mean, cov = joint_state(rows)
    H, R = np.zeros((count, dy, count, dx)), np.zeros((count, dy, count, dy))
    for k in range(count):
        H[k, :, k], R[k, :, k] = rows.H[k], rows.R[k]
    H, R = H.reshape(count * dy, count * dx), R.reshape(count * dy, count * dy)
    return H @ mean + rows.d.ravel(), H @ cov @ H.T + R, cov @ H.T


def path(rows, upto=None):
    """Mean and covariance of the whole path given the first `upto` rows (all by default), and
    their log density."""
    mean, cov = joint_state(rows)
    y_mean, y_cov, cross = joint_observation(rows)
    seen = np.flatnonzero(~np.isnan(rows.y[:upto].ravel()))
    if seen.size == 0:
        return mean, cov, 0.0
    S, residual, C = y_cov[np.ix_(seen, seen)], (rows.y.ravel() - y_mean)[seen], cross[:, seen]
    gain = np.linalg.solve(S, C.T).T
    log_density = -0.5 * (
        residual @ np.linalg.solve(S, residual)
        + np.linalg.slogdet(S)[1]
        + seen.size * np.log(2 * np.pi)
    )
    return mean + gain @ residual, cov - gain @ C.T, log_density


def answer(rows):
    """Everything a filter and a smoother must say, by one conditioning per prefix."""
    count, dx = len(rows.y), len(rows.m0)
    prefixes = []
    for upto in range(count + 1):
        mean, cov, density = path(rows, upto)
        prefixes.append((mean.reshape(count, dx), cov.reshape(count, dx, count, dx), density))
    steps = range(rows.lead, count)
    mean, cov, total = prefixes[-1]

    def at(shift, part):
        each = [prefixes[k + shift][part] for k in steps]
        return np.array(
            [a[k] if part == 0 else a[k, :, k] for k, a in zip(steps, each, strict=True)]
        )

    return Answer(
        log_likelihood=total,
        log_likelihoods=np.array([prefixes[k + 1][2] - prefixes[k][2] for k in steps]),
        predicted_mean=at(0, 0),
        predicted_cov=at(0, 1),
        filtered_mean=at(1, 0),
        filtered_cov=at(1, 1),
        smoothed_mean=mean[rows.lead :],
        smoothed_cov=np.array([cov[k, :, k] for k in steps]),
        lag_one_cov=np.array([cov[k + 1, :, k] for k in list(steps)[:-1]]),
    )


def observation_moments(rows, state_mean, state_cov):
    """Mean and covariance of the next observation in every row, given moments of the state
    there."""
    H, R, d = rows.H[rows.lead :], rows.R[rows.lead :], rows.d[rows.lead :]
    mean = np.einsum("tij,tj->ti", H, state_mean) + d
    return mean, H @ state_cov @ H.transpose(0, 2, 1) + R
