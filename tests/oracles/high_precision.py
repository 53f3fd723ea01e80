"""Kalman filter and fixed-interval smoother in multiple precision, for problems float64 cannot be
trusted on.

With `DIGITS` decimal digits the textbook covariance recursion is exact enough for anything float64
can state. The smoother is the backward recursion of de Jong and of Durbin and Koopman (`r`, `N`),
which never inverts a state covariance, so singular Q and P0 = 0 need no special case. Arrays are
NumPy object arrays of `mpmath.mpf`.
"""

import mpmath
import numpy as np

from oracles.dense import Answer, Rows, observation_rows, with_lead

DIGITS = 80
exactly = np.vectorize(mpmath.mpf, otypes=[object])
rounded = np.vectorize(float, otypes=[float])


def precise(function):
    """Runs `function` in `DIGITS` decimal digits."""

    def call(*args, **kwargs):
        with mpmath.workdps(DIGITS):
            return function(*args, **kwargs)

    call.__doc__ = function.__doc__
    return call


def solve(S, B):
    """S^{-1} B and log det S for symmetric positive definite S, by elimination."""
    S, B, log_det = S.copy(), B.copy(), mpmath.mpf(0)
    size = len(S)
    for k in range(size):
        log_det += mpmath.log(S[k, k])
        for i in range(k + 1, size):
            ratio = S[i, k] / S[k, k]
            S[i, k + 1 :] -= ratio * S[k, k + 1 :]
            B[i] -= ratio * B[k]
    for k in reversed(range(size)):
        B[k] = (B[k] - S[k, k + 1 :] @ B[k + 1 :]) / S[k, k] if k + 1 < size else B[k] / S[k, k]
    return B, log_det


def identity(size):
    return exactly(np.eye(size))


@precise
def discretise(A, L, offset, gap):
    """(Phi, Q, c) of dx = (A x + offset) dt + L dW over `gap`: Taylor series over gap / 2^s, then s
    doublings.

    The offset is a further state of rate zero, so Phi of the larger system holds the integral of
    the offset.
    """
    dx = len(A)
    M, noise = exactly(np.zeros((dx + 1, dx + 1))), exactly(np.zeros((dx + 1, dx + 1)))
    M[:dx, :dx], M[:dx, dx], noise[:dx, :dx] = (
        exactly(A),
        exactly(offset),
        exactly(L) @ exactly(L).T,
    )
    gap = mpmath.mpf(gap)
    if gap == 0:
        return identity(dx), noise[:dx, :dx] * 0, M[:dx, dx] * 0
    norm = max(sum(abs(v) for v in row) for row in M) * gap
    doublings = max(0, int(mpmath.ceil(mpmath.log(norm, 2))) + 4) if norm > 0 else 0
    h = gap / mpmath.mpf(2) ** doublings
    Phi, Q = taylor(M, noise, h)
    for _ in range(doublings):
        Phi, Q = Phi @ Phi, Phi @ Q @ Phi.T + Q
    return Phi[:dx, :dx], Q[:dx, :dx], Phi[:dx, dx]


def taylor(M, noise, h):
    """Phi(h) = sum (M h)^k / k! and Q(h) = sum W_k h^k / k! with W_1 = noise, W_{k+1} = M W_k +
    W_k M^T."""
    power, rate = M * h, noise * h
    Phi, Q = identity(len(M)) + power, rate.copy()
    for k in range(2, DIGITS):  # |M h| < 1/16, so term k is below 16^-k
        power = M @ power * (h / k)
        rate = (M @ rate + rate @ M.T) * (h / k)
        Phi, Q = Phi + power, Q + rate
    return Phi, Q


@precise
def continuous_rows(
    m0, P0, A, L, H, R, y, times, *, B=None, b=None, D=None, d=None, inputs=None, t0=None, u0=None
):
    """Rows of a linear SDE seen at `times`; the input is held constant from each row to the
    next."""
    dx, early = len(A), t0 is not None and bool(t0 < times[0])
    clock = np.concatenate([[t0], times]) if early else np.asarray(times, dtype=float)
    held = (
        None
        if inputs is None
        else (np.concatenate([np.atleast_2d(u0), inputs]) if early else inputs)
    )
    steps = []
    for k in range(len(clock) - 1):
        offset = np.zeros(dx) if b is None else np.asarray(b)
        if B is not None:
            offset = exactly(offset) + exactly(B) @ exactly(held[k])
        gap = mpmath.mpf(float(clock[k + 1])) - mpmath.mpf(float(clock[k]))
        steps.append(discretise(A, L, offset, gap))
    stack = [np.array(part) for part in zip(*steps, strict=True)] if steps else [np.empty(0)] * 3
    H, R, offset = observation_rows(H, R, D, d, inputs, len(times))
    return with_lead(Rows(m0, P0, *stack, H, R, offset, np.asarray(y)), early)


def as_float(rows):
    """The same rows in float64, for the dense oracle."""
    parts = {
        name: rounded(getattr(rows, name)) for name in ("m0", "P0", "F", "Q", "c", "H", "R", "d")
    }
    return Rows(**parts, y=np.asarray(rows.y, dtype=float), lead=rows.lead)


def forward(rows):
    """One tuple per row: predicted and filtered moments, log-likelihood term, and what the
    smoother needs."""
    m, P = exactly(rows.m0), exactly(rows.P0)
    steps = []
    for k, y in enumerate(rows.y):
        seen = np.flatnonzero(~np.isnan(y))
        H = exactly(rows.H[k][seen]) if seen.size else np.empty((0, len(m)), dtype=object)
        filtered_m, filtered_P, term, information, score = m, P, mpmath.mpf(0), 0 * P, 0 * m
        if seen.size:
            residual = exactly(y[seen]) - exactly(rows.d[k][seen]) - H @ m
            S = H @ P @ H.T + exactly(rows.R[k][np.ix_(seen, seen)])
            weighted, log_det = solve(S, np.concatenate([H, residual[:, None]], axis=1))
            information, score = H.T @ weighted[:, :-1], H.T @ weighted[:, -1]
            term = (
                -(residual @ weighted[:, -1] + log_det + seen.size * mpmath.log(2 * mpmath.pi)) / 2
            )
            filtered_m, filtered_P = m + P @ score, P - P @ information @ P
        steps.append((m, P, filtered_m, filtered_P, term, information, score))
        if k + 1 < len(rows.y):
            F = exactly(rows.F[k])
            m = F @ filtered_m + exactly(rows.c[k])
            P = F @ filtered_P @ F.T + exactly(rows.Q[k])
    return steps


def backward(rows, steps):
    """Smoothed means, covariances and lag-one covariances from r_{k-1} = H'S^{-1}v + L'r_k, N
    likewise."""
    size = len(rows.m0)
    r, N = exactly(np.zeros(size)), exactly(np.zeros((size, size)))
    means, covs, lags = [], [], []
    for k in reversed(range(len(steps))):
        m, P, _, _, _, information, score = steps[k]
        if k + 1 < len(steps):
            closed = exactly(rows.F[k]) @ (identity(size) - P @ information)
            lags.append((identity(size) - steps[k + 1][1] @ N) @ closed @ P)
            r, N = closed.T @ r + score, closed.T @ N @ closed + information
        else:
            r, N = score, information
        means.append(m + P @ r)
        covs.append(P - P @ N @ P)
    return means[::-1], covs[::-1], lags[::-1]


@precise
def answer(rows):
    """Everything a filter and a smoother must say, correct to the last bit of float64."""
    steps = forward(rows)
    means, covs, lags = backward(rows, steps)
    lead, size = rows.lead, len(rows.m0)
    column = [np.array(part) for part in zip(*steps, strict=True)]
    lag_one = rounded(np.array(lags[lead:])) if len(lags) > lead else np.empty((0, size, size))
    return Answer(
        log_likelihood=float(sum(column[4])),
        log_likelihoods=rounded(column[4])[lead:],
        predicted_mean=rounded(column[0])[lead:],
        predicted_cov=rounded(column[1])[lead:],
        filtered_mean=rounded(column[2])[lead:],
        filtered_cov=rounded(column[3])[lead:],
        smoothed_mean=rounded(np.array(means))[lead:],
        smoothed_cov=rounded(np.array(covs))[lead:],
        lag_one_cov=lag_one,
    )


@precise
def log_likelihood(rows):
    return sum(step[4] for step in forward(rows))


@precise
def derivative(function, step="1e-20"):
    """d function(a) / d a at a = 0 for a function of an mpf, by a central difference whose error
    is step^2."""
    h = mpmath.mpf(step)
    return float((function(h) - function(-h)) / (2 * h))
