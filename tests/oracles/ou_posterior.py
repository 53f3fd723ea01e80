"""Posterior of a noisy Ornstein-Uhlenbeck process by adaptive importance sampling, in NumPy.

    dX = -theta (X - mu) dt + sigma dW, stationary at the first time,  y = X + N(0, r^2)
    theta ~ LogNormal(0, 1), mu ~ N(0, 5^2), sigma ~ LogNormal(0, 1), r ~ LogNormal(-1, 1)

The likelihood is the scalar recursion of the textbook, for all draws at once. The proposal is a
Student t whose mean and covariance are those of the weighted draws of the round before, so nothing
of a Markov chain enters.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

NAMES = ("theta", "mu", "sigma", "r")
_DF = 6


@dataclass(frozen=True)
class Answer:
    """Moments of the posterior, in the order of `NAMES`, and how many draws they are worth."""

    mean: np.ndarray
    sd: np.ndarray
    corr: np.ndarray
    effective_size: float


def log_density(points, times, y):
    """Log posterior density, up to a constant, of (log theta, mu, log sigma, log r)."""
    theta, mu, sigma, r = (
        np.exp(points[:, 0]),
        points[:, 1],
        np.exp(points[:, 2]),
        np.exp(points[:, 3]),
    )
    total = stats.norm.logpdf(points, [0.0, 0.0, 0.0, -1.0], [1.0, 5.0, 1.0, 1.0]).sum(1)
    stationary = sigma**2 / (2 * theta)
    mean, variance = mu, stationary
    for gap, value in zip(np.diff(times, prepend=times[0]), y, strict=True):
        kept = np.exp(-theta * gap)
        mean = mu + kept * (mean - mu)
        variance = stationary + kept**2 * (variance - stationary)
        predictive = variance + r**2
        total += stats.norm.logpdf(value, mean, np.sqrt(predictive))
        mean = mean + variance / predictive * (value - mean)
        variance = variance * r**2 / predictive
    return total


def answer(times, y, guess, count=50_000, rounds=4):
    """Moments by `count` draws in the last of `rounds` rounds, the first around `guess`."""
    rng = np.random.default_rng(0)
    centre = np.array([np.log(guess[0]), guess[1], np.log(guess[2]), np.log(guess[3])])
    spread = 0.3**2 * np.eye(4)
    for _ in range(rounds):
        proposal = stats.multivariate_t(centre, spread, df=_DF, seed=rng)
        points = proposal.rvs(count)
        log_weights = log_density(points, times, y) - proposal.logpdf(points)
        weights = np.exp(log_weights - log_weights.max())
        weights /= weights.sum()
        centre = weights @ points
        spread = (points - centre).T @ (weights[:, None] * (points - centre))
    points[:, [0, 2, 3]] = np.exp(points[:, [0, 2, 3]])
    mean = weights @ points
    cov = (points - mean).T @ (weights[:, None] * (points - mean))
    sd = np.sqrt(np.diag(cov))
    return Answer(mean, sd, cov / np.outer(sd, sd), 1 / (weights**2).sum())
