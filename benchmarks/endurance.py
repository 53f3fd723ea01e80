"""Single precision over a million rows: what becomes of the covariance, the mean and the log-likelihood.

    python benchmarks/endurance.py [--quick] [--write]

A target of constant velocity with process noise of density q = 1e-6 is followed by a sensor of variance
r = 1e4. Data are rounded to float32 first, so that what differs from float64 is arithmetic. One target
stays near the origin, one goes as far as the model lets it, where float32 no longer resolves what
moves in a row. Beside filterdyn's two forms run two that are in many programs, written down by the book.
The exit status tells whether the square-root form kept to the limits below.
"""

import argparse
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from harness import Aim, aims, number, surroundings, table, write_section

import filterdyn as fd

PACKAGES = ("filterdyn", "jax", "jaxlib", "numpy")
Q_DENSITY, R = 1e-6, 1e4
P0 = np.diag([1e8, 1e2])
F = np.array([[1.0, 1.0], [0.0, 1.0]])
Q = Q_DENSITY * np.array([[1 / 3, 1 / 2], [1 / 2, 1.0]])
H = np.array([[1.0, 0.0]])


class Run(NamedTuple):
    """What a filter says, in float64 whatever it computed in, and the CPU seconds of its second call."""

    means: np.ndarray
    covs: np.ndarray
    log_likelihood: float
    seconds: float


class Errors(NamedTuple):
    """Against the run in float64."""

    #: Largest distance of a mean, in standard deviations of its state.
    mean: float
    #: Largest error of a covariance, whitened by the true one, so that every direction counts.
    cov: float
    #: Smallest eigenvalue of a covariance so whitened; 1 is right, 0 and less is not a covariance.
    least: float
    log_likelihood: float


def near(rows, rng):
    """Positions of a target that swings by 1,000 about the origin."""
    return 1e3 * np.sin(2 * np.pi / 5e4 * np.arange(rows))


def far(rows, rng):
    """Positions of a draw from the model: hundreds of thousands after a million rows."""
    kicks = rng.normal(size=(rows, 2)) @ np.linalg.cholesky(Q).T
    velocity = np.cumsum(kicks[:, 1])
    return np.cumsum(np.concatenate([[0.0], velocity[:-1]]) + kicks[:, 0])


def measurements(track, rows, seed=0):
    """The sensor's readings, rounded to float32."""
    rng = np.random.default_rng(seed)
    return (track(rows, rng) + np.sqrt(R) * rng.normal(size=rows)).astype(np.float32)


def timed(call):
    jax.block_until_ready(call())
    start = time.process_time()
    found = jax.block_until_ready(call())
    return found, time.process_time() - start


def ours(y, dtype, square_root):
    cast = lambda a: jnp.asarray(np.asarray(a), dtype)
    model = fd.StateSpaceModel(
        dist.MultivariateNormal(cast(np.zeros(2)), scale_tril=cast(np.sqrt(P0))),
        fd.LinearSDE(cast([[0.0, 1.0], [0.0, 0.0]]), cast([[0.0], [np.sqrt(Q_DENSITY)]])),
        fd.LinearObservation(cast(H), cast(R)),
    )
    series = fd.Series(np.arange(float(len(y))), y[:, None].astype(dtype))
    follow = fd.KalmanFilter(square_root=square_root)
    result, seconds = timed(lambda: fd.filter(model, series, follow))
    assert result.mean.dtype == dtype
    means, covs = (np.asarray(x, float) for x in (result.mean, result.cov))
    return Run(means, covs, float(result.log_likelihood), seconds)


def by_the_book(y, dtype, joseph):
    """Covariances as P - K S K^T, or in Joseph's form."""
    f, q, h, p0, y = (jnp.asarray(a, dtype) for a in (F, Q, H, P0, y))
    r, eye = jnp.asarray(R, dtype), jnp.eye(2, dtype=dtype)

    def row(carry, y):
        m, P, total = carry
        s = (h @ P @ h.T)[0, 0] + r
        gain = P @ h[0] / s
        error = y - h[0] @ m
        m = m + gain * error
        if joseph:
            left = eye - jnp.outer(gain, h[0])
            P = left @ P @ left.T + r * jnp.outer(gain, gain)
        else:
            P = P - s * jnp.outer(gain, gain)
        total = total - 0.5 * (jnp.log(2 * jnp.pi * s) + error**2 / s)
        return (f @ m, f @ P @ f.T + q, total), (m, P)

    start = (jnp.zeros(2, dtype), p0, jnp.zeros((), dtype))
    run = jax.jit(lambda y: jax.lax.scan(row, start, y))
    ((_, _, total), (means, covs)), seconds = timed(lambda: run(y))
    return Run(np.asarray(means, float), np.asarray(covs, float), float(total), seconds)


def errors(run, truth):
    root = np.linalg.cholesky(truth.covs)
    sd = np.sqrt(np.diagonal(truth.covs, axis1=1, axis2=2))
    whitened = np.linalg.solve(root, run.covs)
    whitened = np.linalg.solve(root, np.swapaxes(whitened, 1, 2))
    whitened = 0.5 * (whitened + np.swapaxes(whitened, 1, 2))
    eigenvalues = np.linalg.eigvalsh(whitened)
    return Errors(
        float(np.abs((run.means - truth.means) / sd).max()),
        float(np.abs(eigenvalues - 1).max()),
        float(eigenvalues.min()),
        abs(run.log_likelihood - truth.log_likelihood),
    )


def steady_state():
    """The covariance after a measurement that the filter settles to, by doubling (Anderson 1978)."""
    A, G, P = F.T, H.T @ H / R, Q
    for _ in range(40):
        inner = np.linalg.inv(np.eye(2) + G @ P)
        A, G, P = A @ inner @ A, G + A @ inner @ G @ A.T, P + A.T @ P @ inner @ A
    return P - P @ H.T @ H @ P / (H @ P @ H.T + R)


SQUARE_ROOT = "filterdyn, square root"
FORMS = {
    SQUARE_ROOT: lambda y: ours(y, np.float32, True),
    "filterdyn, covariance form": lambda y: ours(y, np.float32, False),
    "by the book, Joseph's form": lambda y: by_the_book(y, np.float32, True),
    "by the book, P - K S K'": lambda y: by_the_book(y, np.float32, False),
}


def limits(track, found, truth):
    """What the square-root form is held to."""
    name, relative = track.__name__, found.log_likelihood / abs(truth.log_likelihood)
    goals = [
        Aim(f"{name}: covariance", found.cov, 1e-3),
        Aim(f"{name}: log-likelihood, relative", relative, 2e-7 if track is near else 1e-5),
    ]
    if track is near:
        goals.append(Aim(f"{name}: mean, in standard deviations", found.mean, 0.01))
    return goals


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few rows")
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    asked = parser.parse_args()
    if asked.quick and asked.write:
        parser.error("a quick run shows that all runs, its figures are not worth writing down")
    numpyro.enable_x64()
    rows = 10_000 if asked.quick else 1_000_000
    lines, goals, off = [], [], 0.0
    for track in (near, far):
        y = measurements(track, rows)
        truth = ours(y, np.float64, True)
        off = max(off, float(np.abs(truth.covs[-1] / steady_state() - 1).max()))
        lines.append(
            [f"**{track.__name__}**: positions to {number(float(np.abs(y).max()))}, log-likelihood "
             f"{truth.log_likelihood:,.1f}", *[""] * 5]
        )  # fmt: skip
        for name, call in FORMS.items():
            print(f"  {track.__name__}: {name}", file=sys.stderr, flush=True)
            run = call(y)
            found = errors(run, truth)
            lines.append([name, *(number(x) for x in (*found, run.seconds))])
            if name == SQUARE_ROOT:
                goals += limits(track, found, truth)
    head = ["float32", "mean, sd", "covariance", "least eigenvalue", "log-likelihood", "CPU s"]
    text = (
        f"{table(head, lines)}\n\n{rows:,} rows; largest errors over all rows against float64, whose last "
        f"covariance is within {off:.0e} of the solution of the\nRiccati equation. Covariances are "
        "whitened by the true one, so that every direction counts: the least eigenvalue\nis right at 1, "
        f"and at 0 or below it is no covariance.\n\n{aims(goals)}\n\n{surroundings(*PACKAGES)}"
    )
    print(text)
    if asked.write:
        write_section("endurance", text)
    missed = [goal.what for goal in goals if not goal.measured <= goal.limit]
    for what in missed:
        print(f"beyond its limit: {what}", file=sys.stderr)
    return 1 if missed or not off < 1e-6 else 0


if __name__ == "__main__":
    sys.exit(main())
