"""What is measured: models and simulated data as plain NumPy, the same for every contestant.

The prior holds at the first row: a filter updates first and predicts afterwards.
"""

from typing import NamedTuple

import numpy as np


class Linear(NamedTuple):
    """x' = F x + N(0, Q), y = H x + N(0, R), x_0 ~ N(m0, P0)."""

    F: np.ndarray
    H: np.ndarray
    Q: np.ndarray
    R: np.ndarray
    m0: np.ndarray
    P0: np.ndarray
    ys: np.ndarray

    @property
    def parameters(self):
        """What a gradient is taken with respect to."""
        return {"F": self.F, "H": self.H, "Q": self.Q, "R": self.R}


def _spd(rng, n, low, high):
    """A covariance with eigenvalues between `low` and `high`."""
    basis, _ = np.linalg.qr(rng.normal(size=(n, n)))
    return (basis * rng.uniform(low, high, n)) @ basis.T


def linear(dx, dy, rows, seed=0):
    """A stable, well-conditioned system with full matrices, and a series that it made."""
    rng = np.random.default_rng([seed, dx, dy])
    F = 0.95 * np.linalg.qr(rng.normal(size=(dx, dx)))[0]
    H = rng.normal(size=(dy, dx)) / np.sqrt(dx)
    Q, R = _spd(rng, dx, 0.05, 0.2), _spd(rng, dy, 0.2, 1.0)
    ys = simulate_linear(rng, F, H, Q, R, rows)
    return Linear(F, H, Q, R, np.zeros(dx), np.eye(dx), ys)


def simulate_linear(rng, F, H, Q, R, rows, series=()):
    """Observations (*series, rows, dy)."""
    dx, dy = len(F), len(H)
    moves = rng.normal(size=(rows, *series, dx)) @ np.linalg.cholesky(Q).T
    noise = rng.normal(size=(rows, *series, dy)) @ np.linalg.cholesky(R).T
    x, seen = rng.normal(size=(*series, dx)), []
    for move, error in zip(moves, noise, strict=True):
        seen.append(x @ H.T + error)
        x = x @ F.T + move
    return np.stack(seen, axis=-2)


def fleet(series, rows, seed=0):
    """Many series (series, rows, dy) of one system with four states and two sensors."""
    one = linear(4, 2, 1, seed)
    rng = np.random.default_rng([seed, series, rows])
    return one._replace(ys=simulate_linear(rng, one.F, one.H, one.Q, one.R, rows, (series,)))


class Pendulum(NamedTuple):
    """A damped pendulum in Euler steps, of which the sine of the angle is seen."""

    gravity: float
    Q: np.ndarray
    R: np.ndarray
    m0: np.ndarray
    P0: np.ndarray
    dt: float
    damping: float
    ys: np.ndarray

    @property
    def parameters(self):
        return {"gravity": np.asarray(self.gravity), "Q": self.Q, "R": self.R}

    def move(self, xp, x, gravity):
        """The next state; `xp` is the module of array functions."""
        angle, speed = x[0], x[1]
        pull = -gravity * xp.sin(angle) - self.damping * speed
        return xp.stack([angle + self.dt * speed, speed + self.dt * pull])

    def see(self, xp, x):
        return xp.sin(x[:1])


def pendulum(rows, seed=0):
    rng = np.random.default_rng([seed, rows])
    dt, noise, R = 0.05, 0.2, np.array([[0.02]])
    Q = noise * np.array([[dt**3 / 3, dt**2 / 2], [dt**2 / 2, dt]])
    made = Pendulum(9.81, Q, R, np.array([1.0, 0.0]), 0.1 * np.eye(2), dt, 0.5, np.empty(0))
    moves = rng.normal(size=(rows, 2)) @ np.linalg.cholesky(Q).T
    noise = rng.normal(size=(rows, 1)) @ np.sqrt(R)
    x, ys = made.m0, []
    for move, error in zip(moves, noise, strict=True):
        ys.append(made.see(np, x) + error)
        x = made.move(np, x, made.gravity) + move
    return made._replace(ys=np.stack(ys))


class Lorenz(NamedTuple):
    """The Lorenz-63 system with additive noise, all of it seen at irregular times."""

    rates: np.ndarray
    diffusion: float
    R: np.ndarray
    m0: np.ndarray
    P0: np.ndarray
    times: np.ndarray
    ys: np.ndarray

    @property
    def parameters(self):
        return {"rates": self.rates, "R": self.R}

    @staticmethod
    def drift(xp, x, rates):
        a, b, c = rates[0], rates[1], rates[2]
        return xp.stack([a * (x[1] - x[0]), x[0] * (b - x[2]) - x[1], x[0] * x[1] - c * x[2]])

    def jacobian(self, x):
        a, b, c = self.rates
        return np.array([[-a, a, 0.0], [b - x[2], -1.0, -x[0]], [x[1], x[0], -c]])


def lorenz(rows, seed=0):
    rng = np.random.default_rng([seed, rows])
    rates = np.array([10.0, 28.0, 8.0 / 3.0])
    times = np.concatenate([[0.0], np.cumsum(rng.uniform(0.01, 0.09, rows - 1))])
    m0, P0, R, diffusion = np.array([1.5, -1.5, 25.0]), np.eye(3), np.eye(3), 1.0
    made = Lorenz(rates, diffusion, R, m0, P0, times, np.empty(0))
    x, ys = m0 + rng.normal(size=3), []
    for gap in [*np.diff(times), 0.0]:
        ys.append(x + rng.normal(size=3))
        for _ in range(100):
            step = gap / 100
            x = x + step * made.drift(np, x, rates) + diffusion * np.sqrt(step) * rng.normal(size=3)
    return made._replace(ys=np.stack(ys))


def lorenz_exactly(made):
    """Log-likelihood and filtered means of the extended filter, its moment equations solved to twelve
    digits."""
    from scipy.integrate import solve_ivp

    def moments(t, state):
        x, P = state[:3], state[3:].reshape(3, 3)
        A = made.jacobian(x)
        spread = A @ P + P @ A.T + made.diffusion**2 * np.eye(3)
        return np.concatenate([made.drift(np, x, made.rates), spread.ravel()])

    m, P, total, means = made.m0, made.P0, 0.0, []
    for y, gap in zip(made.ys, [*np.diff(made.times), 0.0], strict=True):
        m, P, more = update(m, P, y, np.eye(3), made.R)
        total += more
        means.append(m)
        if gap > 0:
            start = np.concatenate([m, P.ravel()])
            end = solve_ivp(moments, (0, gap), start, method="DOP853", rtol=1e-12, atol=1e-12)
            m, P = end.y[:3, -1], end.y[3:, -1].reshape(3, 3)
    return total, np.stack(means)


def update(m, P, y, H, R, xp=np):
    """One row by the book: mean, covariance and log-likelihood. For contestants that predict before
    they update, the first row is taken off by it."""
    S = H @ P @ H.T + R
    innovation = y - H @ m
    gain = xp.linalg.solve(S, H @ P).T
    distance = innovation @ xp.linalg.solve(S, innovation)
    log_likelihood = -0.5 * (
        distance + xp.linalg.slogdet(S)[1] + len(innovation) * np.log(2 * np.pi)
    )
    return m + gain @ innovation, P - gain @ S @ gain.T, log_likelihood
