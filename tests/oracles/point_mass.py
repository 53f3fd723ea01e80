"""The exact filter of one state by quadrature on a grid: x' = f(t, x) + s N(0, 1), y ~ exp(log_g(x, y))."""

import numpy as np


def log_likelihood(f, s, prior_mean, prior_sd, log_g, ys, points=1201, width=9.0, box=None):
    """log p(y), the prior holding at the first row. `log_g(x, y)` and `f(t, x)` take arrays of x."""
    low, high = box or (prior_mean - width * prior_sd, prior_mean + width * prior_sd)
    x = np.linspace(low, high, points)
    step = x[1] - x[0]
    density = _normal(x, prior_mean, prior_sd)
    total = 0.0
    for t, y in enumerate(ys):
        if t > 0:
            kernel = _normal(x[:, None], f(t - 1, x)[None, :], s)
            density = kernel @ density * step
        weighted = density * np.exp(log_g(x, y))
        evidence = weighted.sum() * step
        total += np.log(evidence)
        density = weighted / evidence
    return total


def _normal(x, mean, sd):
    return np.exp(-0.5 * ((x - mean) / sd) ** 2) / (sd * np.sqrt(2 * np.pi))
