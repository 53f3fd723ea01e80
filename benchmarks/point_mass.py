"""The posterior of a stochastic volatility by sums over grids: of the state, and of its three parameters.

    x_0 ~ N(mu, s^2 / (1 - rho^2)),  x_t = mu + rho (x_{t-1} - mu) + s N(0, 1),  y_t ~ N(0, exp(x_t))

The grid of the state is z = (x - mu) sqrt(1 - rho^2) / s, in which the transition depends on rho alone:
for each rho one matrix moves the points of all (mu, s) at once. The grid of the parameters is even in
unconstrained coordinates. Even sums over smooth functions that vanish at both ends converge faster than
any power of the spacing; a grid of other spacing says how far to trust them.
"""

from typing import NamedTuple

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.special import expit

REACH = 6.5  #: the state's grid ends at so many stationary standard deviations


class StateGrid(NamedTuple):
    """Points (G,) of z, their stationary weights (G,), and the transition (G, G), columns to rows."""

    z: np.ndarray
    start: np.ndarray
    move: np.ndarray


def state_grid(rho, points=None):
    """As many points (an odd number) as resolve the transition, which is s' = sqrt(1 - rho^2) wide."""
    width = np.sqrt(1 - rho**2)
    points = int(np.clip(2 * np.ceil(REACH / width) + 1, 121, 601)) if points is None else points
    z = np.linspace(-REACH, REACH, points)
    normal = lambda x, sd: np.exp(-0.5 * (x / sd) ** 2) * (z[1] - z[0]) / (sd * np.sqrt(2 * np.pi))
    return StateGrid(z, normal(z, 1.0), normal(z[:, None] - rho * z, width))


def run(y, mu, rho, s, rows=(), smooth=False, points=None):
    """Log-likelihoods (B,) for `mu` and `s` (B,) and one `rho`, and the state's means (B, len(rows)) at
    `rows`: given the measurements up to that row, or all of them (`smooth`)."""
    grid = state_grid(rho, points)
    x = mu + s / np.sqrt(1 - rho**2) * grid.z[:, None]
    scale, quadratic = np.exp(-0.5 * x) / np.sqrt(2 * np.pi), -0.5 * np.exp(-x)
    seen = lambda value: scale * np.exp(value**2 * quadratic)
    p, total = np.repeat(grid.start[:, None], len(mu), 1), np.zeros(len(mu))
    kept = {}
    for k, value in enumerate(y):
        p = (grid.move @ p if k else p) * seen(value)
        mass = p.sum(0)
        total += np.log(mass)
        p /= mass
        if k in rows:
            kept[k] = p
    if smooth:
        later = np.ones_like(p)
        for k in range(len(y) - 1, min(rows) - 1, -1):
            if k in rows:
                both = kept[k] * later
                kept[k] = both / both.sum(0)
            later = grid.move.T @ (later * seen(y[k]))
            later /= later.sum(0)
    means = [(kept[k] * x).sum(0) for k in rows]
    return total, np.stack(means, 1) if means else np.zeros((len(mu), 0))


class Posterior(NamedTuple):
    """Values (n,) of each parameter, and normalised weights (n_mu, n_rho, n_s) of their combinations."""

    values: dict
    weights: np.ndarray

    def expectation(self, name, function):
        """The mean of `function` of one parameter."""
        return self._marginal(name) @ function(self.values[name])

    def quantiles(self, name, levels):
        """From the density, whose logarithm is a cubic spline through that at the points."""
        log_w = np.log(np.maximum(self._marginal(name), 1e-300))
        at = np.arange(len(log_w))
        fine = np.linspace(0.0, at[-1], 20_001)
        below = np.cumsum(np.exp(CubicSpline(at, log_w)(fine)))
        return np.interp(levels, below / below[-1], CubicSpline(at, self.values[name])(fine))

    def edge(self):
        """The largest share of a face of the box."""
        marginals = [self._marginal(name) for name in self.values]
        return max(max(w[0], w[-1]) for w in marginals)

    def _marginal(self, name):
        axis = list(self.values).index(name)
        return self.weights.sum(tuple(k for k in range(3) if k != axis))


class Box(NamedTuple):
    """Even points of asinh((mu - centre) / 0.3), logit(rho) and log(s), by first, last and number."""

    centre: float
    mu: tuple = (-2.6, 2.6, 31)
    rho: tuple = (-1.0, 7.5, 27)
    s: tuple = (-3.7, 0.5, 31)

    def values(self):
        a, v, w = (np.linspace(*axis) for axis in (self.mu, self.rho, self.s))
        slopes = (np.log(np.cosh(a)), np.log(expit(v)) + np.log(expit(-v)), w)
        named = {"mu": self.centre + 0.3 * np.sinh(a), "rho": expit(v), "sigma": np.exp(w)}
        return named, slopes


def posterior(y, log_prior, box):
    """The posterior on the grid; `log_prior(mu, rho, s)` is the density of the parameters themselves."""
    values, slopes = box.values()
    mu, s = (x.ravel() for x in np.meshgrid(values["mu"], values["sigma"], indexing="ij"))
    shape = len(values["mu"]), len(values["sigma"])
    each = [(run(y, mu, rho, s)[0] + log_prior(mu, rho, s)).reshape(shape) for rho in values["rho"]]
    log_weights = np.stack(each, 1)
    for axis, slope in enumerate(slopes):
        log_weights += np.expand_dims(slope, [k for k in range(3) if k != axis])
    w = np.exp(log_weights - log_weights.max())
    return Posterior(values, w / w.sum())


def smoothed(y, found, rows, least=1e-7):
    """Posterior mean of the state at `rows`, parameters averaged over, from the points of `found` whose
    weight is at least `least`."""
    values, total, mass = found.values, np.zeros(len(rows)), 0.0
    for k, rho in enumerate(values["rho"]):
        i, j = np.nonzero(found.weights[:, k] >= least)
        if len(i):
            w = found.weights[i, k, j]
            means = run(y, values["mu"][i], rho, values["sigma"][j], rows, smooth=True)[1]
            total, mass = total + w @ means, mass + w.sum()
    return total / mass
