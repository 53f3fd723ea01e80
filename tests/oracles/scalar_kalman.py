"""The Kalman filter of one state, in plain NumPy, for a whole grid of parameters at once: with it the
posterior of a few parameters is a sum."""

import numpy as np


def log_likelihoods(ys, a, q, r, m0, p0):
    """log p(y_1:T) of x' = a x + N(0, q), y = x + N(0, r), x_1 ~ N(m0, p0), where `a`, `q`, `r` are arrays
    that broadcast. NaN = missing."""
    a, q, r = np.broadcast_arrays(a, q, r)
    m, p = np.full(a.shape, float(m0)), np.full(a.shape, float(p0))
    total = np.zeros(a.shape)
    for row, y in enumerate(ys):
        if row:
            m, p = a * m, a * a * p + q
        if np.isnan(y):
            continue
        s = p + r
        total -= 0.5 * ((y - m) ** 2 / s + np.log(2 * np.pi * s))
        gain = p / s
        m, p = m + gain * (y - m), p * (1 - gain)
    return total


def posterior(log_prior, log_likelihood, *parameters):
    """Evidence, means and standard deviations of parameters on a grid of equal cells, whose size is in
    `log_prior`."""
    joint = log_prior + log_likelihood
    top = joint.max()
    weights = np.exp(joint - top)
    evidence = top + np.log(weights.sum())
    weights /= weights.sum()
    means = [(weights * p).sum() for p in parameters]
    sds = [np.sqrt((weights * (p - m) ** 2).sum()) for p, m in zip(parameters, means, strict=True)]
    return evidence, np.array(means), np.array(sds)
