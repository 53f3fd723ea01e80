"""Simulated records in the place of recordings that are not at hand, in plain NumPy."""

from collections.abc import Callable

import numpy as np

Pair = tuple[np.ndarray, np.ndarray]


def _step(
    field: Callable[[np.ndarray, float], np.ndarray], x: np.ndarray, u: float, h: float
) -> np.ndarray:
    """A step of the classical Runge-Kutta method, with the input held."""
    a = field(x, u)
    b = field(x + 0.5 * h * a, u)
    c = field(x + 0.5 * h * b, u)
    return x + h / 6 * (a + 2 * b + 2 * c + field(x + h * c, u))


def simulated_emps(rows: int = 6_000) -> list[Pair]:
    """A mass with friction (95 kg, 200 N s/m, 20 N, offset -3 N) that a controller moves to and fro: the
    force (N) and the position (m) at 1 kHz, without and with pulses of force."""
    pairs = []
    for seed, pulse in ((0, 0.0), (1, 5.0)):
        rng, step = np.random.default_rng(seed), 1e-3
        t = step * np.arange(rows)
        wanted = 0.12 * (1 - np.cos(2 * np.pi * t / 3.0))
        speed = 0.12 * 2 * np.pi / 3.0 * np.sin(2 * np.pi * t / 3.0)
        extra = pulse * (np.arange(rows) // 250 % 2)
        friction = 0.1 * np.sqrt(step) * rng.normal(size=rows) / step
        x, force, position = np.zeros(2), np.zeros(rows), np.zeros(rows)
        for k in range(rows):
            position[k] = x[0] + 2e-8 * rng.normal()
            force[k] = 6e4 * (wanted[k] - x[0]) + 3e3 * (speed[k] - x[1]) + extra[k]

            def field(x: np.ndarray, u: float, noise: float = friction[k]) -> np.ndarray:
                resisting = 200 * x[1] + 20 * np.tanh(x[1] / 1e-3) - 3.0
                return np.array([x[1], (u - resisting + noise) / 95.0])

            x = _step(field, x, force[k], step)
        pairs.append((force, position))
    return pairs


def simulated_cascaded_tanks(rows: int = 500) -> list[Pair]:
    """Pump (V) and level of the lower tank (V) every 4 s; the outflows are not quite those of the square
    root, and what overflows from the upper tank is lost in part."""
    pairs = []
    for seed in (2, 3):
        rng = np.random.default_rng(seed)
        t = np.arange(rows)
        u = 3.2 + sum(
            rng.uniform(0.2, 0.7) * np.sin(2 * np.pi * t / p + rng.uniform(0, 2 * np.pi))
            for p in (170, 90, 55, 31, 17)
        )
        u = np.clip(u, 0.4, 6.5)

        def field(x: np.ndarray, u: float) -> np.ndarray:
            root = np.sqrt(np.maximum(x, 0.01))
            over = 0.12 * np.maximum(x[0] - 9.5, 0.0)
            out = 0.055 * root[0] + 0.0006 * x[0]
            return np.array([0.05 * u - out - over, out + 0.4 * over - 0.058 * root[1]])

        x, level = np.array([5.0, 5.0]), np.zeros(rows)
        for k in range(rows):
            level[k] = min(x[1] + 0.02 * rng.normal(), 10.0)
            x = _step(field, x, u[k], 4.0) + 0.01 * rng.normal(size=2)
        pairs.append((u, level))
    return pairs


def simulated_silverbox(rows: int = 3_000) -> list[Pair]:
    """Input and output voltage of an oscillator with a cubic spring at 610.35 Hz: two multisines, and one
    whose amplitude grows. The input is straight between samples, as that of a reconstruction filter."""
    pairs, step = [], 1 / 610.35
    for seed, shape in ((4, 1.0), (5, 1.0), (6, np.linspace(0.1, 1.5, rows))):
        rng = np.random.default_rng(seed)
        frequencies = np.arange(5, 200, 2.5)
        t = step * np.arange(rows + 1)
        phases = rng.uniform(0, 2 * np.pi, len(frequencies))
        u = np.sin(2 * np.pi * np.outer(t, frequencies) + phases).sum(axis=1)
        u = 0.022 * u / u.std() * np.append(shape, 1.0) if np.ndim(shape) else 0.022 * u / u.std()

        def field(x: np.ndarray, u: float) -> np.ndarray:
            spring = 180_000 * x[0] + 800_000 * x[0] ** 3
            return np.array([x[1], 170_000 * u - 45 * x[1] - spring])

        x, y = np.zeros(2), np.zeros(rows)
        for k in range(rows):
            y[k] = x[0] + 2e-4 * rng.normal()
            for j in range(4):
                part = (j + 0.5) / 4
                x = _step(field, x, (1 - part) * u[k] + part * u[k + 1], step / 4)
        pairs.append((u[:rows], y))
    return pairs
