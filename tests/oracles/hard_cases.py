"""Linear-Gaussian problems on which careless arithmetic fails, with exact answers from
`high_precision`.

A case is stated in numbers; `case.cast(dtype)` rounds its model and data to `dtype` first, so that
the exact answer is that of the problem the library is really given.
"""

from dataclasses import dataclass, field, replace

import mpmath
import numpy as np

from oracles import high_precision
from oracles.dense import discrete_rows

MATRICES = {"discrete": ("F", "Q", "H", "R"), "continuous": ("A", "L", "H", "R")}


@dataclass(frozen=True)
class Case:
    """`parts` holds F, Q (discrete) or A, L (continuous), H, R, m0, P0 and optionally b and d."""

    name: str
    kind: str
    times: np.ndarray
    y: np.ndarray
    parts: dict = field(repr=False)

    def cast(self, dtype):
        """The same problem with model and data rounded to `dtype`; times stay float64."""
        parts = {name: np.asarray(value).astype(dtype) for name, value in self.parts.items()}
        return replace(self, parts=parts, y=self.y.astype(dtype))

    def rows(self, scale=None, log_scale=0):
        """The problem in rows, with one of its parts (F, Q, ..) multiplied by e^log_scale."""
        p = dict(self.parts)
        if scale is not None:
            p[scale] = high_precision.exactly(p[scale]) * mpmath.exp(log_scale)
        arguments = [p.pop(name) for name in ("m0", "P0", *MATRICES[self.kind])]
        if self.kind == "discrete":
            return discrete_rows(*arguments, self.y, times=self.times, **p)
        return high_precision.continuous_rows(*arguments, self.y, self.times, **p)

    def answer(self):
        return high_precision.answer(self.rows())

    def gradient(self):
        """Exact d log-likelihood / d (log scale) of each matrix, in the order of `MATRICES`."""

        def slope(name):
            return high_precision.derivative(
                lambda a: high_precision.log_likelihood(self.rows(name, a))
            )

        return np.array([slope(name) for name in MATRICES[self.kind]])


def metrics(mean, cov, exact_mean, exact_cov, scale):
    """`mean_sd` and `cov_rel` of the reference files; where the exact variance is zero, `scale`
    (dx,) is the unit."""
    sd = np.sqrt(np.maximum(np.diagonal(exact_cov, axis1=1, axis2=2), 0.0))
    sd = np.where(sd > 1e-20 * np.asarray(scale), sd, scale)
    sd = np.where(sd > 0, sd, 1.0)
    mean_sd = np.max(np.abs(mean - exact_mean) / sd)
    cov_rel = np.max(np.abs(cov - exact_cov) / (sd[:, :, None] * sd[:, None, :]))
    return mean_sd, cov_rel


def natural_scale(exact):
    """The largest predicted standard deviation of each state: the unit of a state that is known
    exactly."""
    return np.sqrt(np.diagonal(exact.predicted_cov, axis1=1, axis2=2).max(0))


def loglik_rel(value, exact):
    return abs(value - exact) / max(1.0, abs(exact))


def simulated(rng, F, noise, H, sd, m0, steps):
    """Data in the scale of the model; a case is defined by the numbers, not by how they were
    drawn."""
    x, y = np.array(m0, dtype=float), []
    for _ in range(steps):
        y.append(H @ x + sd * rng.standard_normal(len(H)))
        x = F @ x + noise @ rng.standard_normal(noise.shape[1])
    return np.round(np.array(y), 9)


VELOCITY = np.array([[1.0, 1.0], [0.0, 1.0]])


def precise_sensor_vague_prior():
    """R = 1e-10 with P0 = 1e8: one update shrinks a variance by 18 decades."""
    noise = 0.1 * np.eye(2)
    y = simulated(np.random.default_rng(1), VELOCITY, noise, np.eye(1, 2), 1e-5, [3.0, 0.5], 12)
    parts = dict(
        F=VELOCITY, Q=noise @ noise, H=np.eye(1, 2), R=[[1e-10]], m0=np.zeros(2), P0=1e8 * np.eye(2)
    )
    return Case("precise sensor, vague prior", "discrete", np.arange(12.0), y, parts)


def eighteen_decades_between_sensors_and_prior():
    """A correlated vague prior, one sensor at 1e-9 and one at 1, entries missing in turn."""
    F = np.array([[1.0, 0.5, 0.1], [0.0, 0.9, 0.3], [0.0, -0.2, 0.8]])
    H = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]])
    P0 = 1e9 * np.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.3], [0.0, 0.3, 1.0]])
    sd = np.array([10**-4.5, 1.0])
    y = simulated(np.random.default_rng(2), F, 0.3 * np.eye(3), H, sd, [1.0, -1.0, 2.0], 12)
    y[1, 0] = y[4, 1] = y[7, 0] = y[7, 1] = np.nan
    parts = dict(F=F, Q=0.09 * np.eye(3), H=H, R=np.diag([1e-9, 1.0]), m0=np.zeros(3), P0=P0)
    return Case("18 decades between R and P0", "discrete", np.arange(12.0), y, parts)


def exact_arma():
    """ARMA(2,1) in companion form: R = 0, Q of rank one, the filtered covariance falls to zero
    as theta^(2t)."""
    phi, theta = (0.75, -0.25), 0.5
    F, g = np.array([[phi[0], 1.0], [phi[1], 0.0]]), np.array([[1.0], [theta]])
    P0 = np.linalg.solve(np.eye(4) - np.kron(F, F), (g @ g.T).ravel()).reshape(2, 2)
    y = simulated(np.random.default_rng(3), F, g, np.eye(1, 2), 0.0, [0.5, 0.2], 12)
    parts = dict(F=F, Q=g @ g.T, H=np.eye(1, 2), R=[[0.0]], m0=np.zeros(2), P0=(P0 + P0.T) / 2)
    return Case("ARMA(2,1) with R = 0", "discrete", np.arange(12.0), y, parts)


def near_collinear_sensors():
    """Rows of H that differ by 1e-8 and R = 1e-12: the difference of the sensors carries the
    second state."""
    F, noise = np.array([[0.9, 0.3], [-0.3, 0.9]]), 0.3 * np.eye(2)
    H = np.array([[1.0, 1.0], [1.0, 1.0 + 1e-8]])
    y = simulated(np.random.default_rng(4), F, noise, H, 1e-6, [1.0, -0.5], 12)
    parts = dict(F=F, Q=noise @ noise, H=H, R=1e-12 * np.eye(2), m0=np.zeros(2), P0=np.eye(2))
    return Case("near-collinear sensors", "discrete", np.arange(12.0), y, parts)


def forty_sensors_over_ten_decades():
    """40 sensors with R from 1e-6 to 1e4 on three states."""
    rng = np.random.default_rng(5)
    F = np.array([[0.9, 0.2, 0.0], [-0.2, 0.9, 0.1], [0.0, 0.0, 0.7]])
    H, r = np.round(rng.standard_normal((40, 3)), 3), np.logspace(-6, 4, 40)
    y = simulated(rng, F, 0.5 * np.eye(3), H, np.sqrt(r), [1.0, 0.0, -1.0], 3)
    parts = dict(F=F, Q=0.25 * np.eye(3), H=H, R=np.diag(r), m0=np.zeros(3), P0=10.0 * np.eye(3))
    return Case("40 sensors over ten decades", "discrete", np.arange(3.0), y, parts)


def ordinary_units():
    """A well-conditioned three-state model: `units_over_36_decades` before its units are
    changed."""
    F = np.array([[0.9, 0.2, 0.0], [-0.2, 0.8, 0.3], [0.1, 0.0, 0.7]])
    Q = np.array([[0.2, 0.05, 0.0], [0.05, 0.3, 0.1], [0.0, 0.1, 0.25]])
    H, R = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, -0.5]]), np.array([[0.2, 0.05], [0.05, 0.3]])
    y = simulated(np.random.default_rng(6), F, np.linalg.cholesky(Q), H, 0.5, [1.0, 0.0, -1.0], 12)
    y[3, 0] = np.nan
    parts = dict(F=F, Q=Q, H=H, R=R, m0=np.array([0.5, 0.0, 0.0]), P0=2 * np.eye(3) + 0.5)
    return Case("ordinary units", "discrete", np.arange(12.0), y, parts)


UNITS = 2.0 ** np.array(
    [-60, 0, 60]
)  # powers of two: the change of units is exact, 36 decades of standard deviation


def units_over_36_decades():
    """The states of `ordinary_units` in units 1e-18, 1 and 1e18: the same problem, hence the
    same log-likelihood."""
    plain, s = ordinary_units(), UNITS
    p = plain.parts
    parts = dict(
        F=s[:, None] * p["F"] / s,
        Q=s[:, None] * p["Q"] * s,
        H=p["H"] / s,
        R=p["R"],
        m0=s * p["m0"],
        P0=s[:, None] * p["P0"] * s,
    )
    return replace(plain, name="units over 36 decades", parts=parts)


def delta_start_and_singular_noise():
    """P0 = 0 and Q of rank one in three states: the first predicted covariances have rank 0, 1
    and 2."""
    F = np.array([[1.0, 0.5, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 0.9]])
    g = np.array([[0.0], [0.0], [0.4]])
    y = simulated(np.random.default_rng(7), F, g, np.eye(1, 3), 0.3, [1.0, 0.5, 0.0], 12)
    parts = dict(
        F=F,
        Q=g @ g.T,
        H=np.eye(1, 3),
        R=[[0.09]],
        m0=np.array([1.0, 0.5, 0.0]),
        P0=np.zeros((3, 3)),
    )
    return Case("Delta start, Q of rank one", "discrete", np.arange(12.0), y, parts)


def correlated_sensors_with_gaps():
    """Sensor noise correlated at 0.999999 and entries missing: what is observed has the marginal
    of R, not R."""
    F, noise = np.array([[0.9, 0.3], [-0.3, 0.9]]), np.diag([0.2, 0.3])
    H, c = np.array([[1.0, 0.0], [1.0, 0.5]]), 1 - 1e-6
    y = simulated(np.random.default_rng(8), F, noise, H, 0.5, [1.0, -0.5], 12)
    y[:, 1] = y[:, 0] + 0.5 * (y[:, 1] - y[:, 0]).round(3) * 1e-2
    y[0, 1] = y[3, 0] = y[5, 0] = y[5, 1] = y[9, 1] = np.nan
    parts = dict(
        F=F,
        Q=noise @ noise,
        H=H,
        R=0.25 * np.array([[1.0, c], [c, 1.0]]),
        m0=np.zeros(2),
        P0=np.eye(2),
    )
    return Case("correlated sensors with gaps", "discrete", np.arange(12.0), y, parts)


def nothing_observed():
    """All rows missing: the log-likelihood is exactly zero and the filter predicts."""
    plain = ordinary_units()
    return replace(plain, name="nothing observed", y=np.full_like(plain.y, np.nan))


def one_row():
    """T = 1: filter and smoother agree, no transition is made."""
    plain = ordinary_units()
    return replace(plain, name="one row", times=plain.times[:1], y=plain.y[:1])


def discrete_with_repeated_times():
    """A repeated time makes no transition: two reads of one sensor and one of the other at the
    same instant."""
    plain = ordinary_units()
    times = np.array([0, 1, 1, 1, 2, 3, 3, 4, 5, 6, 6, 7], dtype=float)
    y = plain.y.copy()
    y[1, 1] = y[2, 0] = np.nan
    return replace(plain, name="discrete, repeated times", times=times, y=y)


INTEGRATOR = np.array([[0.0, 1.0], [0.0, 0.0]])


def integrated_walk_over_nine_decades_of_gaps():
    """Gaps from 1e-6 to 1e3 in the hardest order, short after long: entries of Q run from 1e-18
    to 1e9."""
    gaps = np.array([1e3, 1e-6, 1e-3, 1e2, 1e-5, 1.0, 1e-1, 1e3, 1e-4, 1e-6, 10.0])
    times = np.concatenate([[0.0], np.cumsum(gaps)])
    y = np.round(0.7 * times + 0.3 * np.random.default_rng(9).standard_normal(12), 6)[:, None]
    y[5] = np.nan
    parts = dict(
        A=INTEGRATOR,
        L=[[0.0], [0.1]],
        H=np.eye(1, 2),
        R=[[0.01]],
        m0=np.zeros(2),
        P0=np.diag([10.0, 1.0]),
    )
    return Case("integrated walk, gaps 1e-6 to 1e3", "continuous", times, y, parts)


def twice_integrated_walk():
    """Gaps from 1e-3 to 1e2 on acceleration noise: entries of Q run from 1e-18 to 1e10."""
    gaps = np.array([1e2, 1e-3, 1e-2, 1.0, 1e-3, 10.0, 1e-1, 1e2, 1e-3, 0.5, 10.0])
    times = np.concatenate([[0.0], np.cumsum(gaps)])
    y = np.round(0.7 * times + 0.3 * np.random.default_rng(10).standard_normal(12), 6)[:, None]
    parts = dict(
        A=np.diag([1.0, 1.0], 1),
        L=[[0.0], [0.0], [0.01]],
        H=np.eye(1, 3),
        R=[[0.01]],
        m0=np.zeros(3),
        P0=np.eye(3),
    )
    return Case("twice integrated walk", "continuous", times, y, parts)


LAG = np.array([[-1e6, 1e6], [0.0, -0.1]])
EXCHANGE = -5e5 * np.array([[1.0, -1.0], [-1.0, 1.0]]) - 0.05 * np.ones((2, 2))


def stiff(name, A, observed):
    """Eigenvalues -1e6 and -0.1, gaps 1e-3 to 10: a fast sensor that follows a slow state (`LAG`,
    triangular), or a fast exchange between two states that decay slowly (`EXCHANGE`, symmetric)."""
    gaps = np.array([1e-3, 10.0, 0.1, 1.0, 1e-3, 3.0, 1e-2, 10.0, 1e-3, 0.5, 2.0])
    times = np.concatenate([[0.0], np.cumsum(gaps)])
    rng = np.random.default_rng(11)
    y = np.round(rng.standard_normal((12, len(observed))), 6)
    y[4, 0] = np.nan
    H = np.eye(2)[observed]
    R = np.diag([0.01, 0.04])[np.ix_(observed, observed)]
    parts = dict(
        A=A, L=np.diag([30.0, 0.5]), H=H, R=R, m0=np.zeros(2), P0=np.eye(2), b=np.array([0.0, 0.05])
    )
    return Case(name, "continuous", times, y, parts)


def singular_diffusion():
    """Noise on one state only, and a third state that is an unknown constant: Q has rank two
    over every gap."""
    A = np.array([[0.0, 1.0, 0.0], [-4.0, -0.4, 1.0], [0.0, 0.0, 0.0]])
    gaps = np.array([0.1, 0.7, 0.3, 1.5, 0.05, 0.4, 0.4, 2.0, 0.2, 0.6, 0.9])
    times = np.concatenate([[0.0], np.cumsum(gaps)])
    y = np.round(np.cos(2 * times) + 0.25 + 0.1 * np.random.default_rng(12).standard_normal(12), 6)[
        :, None
    ]
    parts = dict(
        A=A, L=[[0.0], [0.5], [0.0]], H=np.eye(1, 3), R=[[0.01]], m0=np.zeros(3), P0=np.eye(3)
    )
    return Case("singular diffusion", "continuous", times, y, parts)


def delta_start_in_continuous_time():
    """P0 = 0 and noise on the velocity only, first gaps short: Q of the first gap is 1e-9 in its
    smallest direction."""
    plain = singular_diffusion()
    parts = {**plain.parts, "P0": np.zeros((3, 3)), "m0": np.array([1.0, 0.0, 1.0])}
    times = np.concatenate([[0.0, 1e-3], plain.times[2:]])
    return replace(plain, name="Delta start, continuous", times=times, parts=parts)


def repeated_times():
    """Sensors read at the same instant, each precise: Phi = I and Q = 0 exactly, updates in
    sequence."""
    times = np.array([0.0, 0.5, 0.5, 0.5, 1.2, 1.2, 3.0, 3.0, 3.0, 3.1, 3.1, 4.0])
    A = np.array([[-0.5, 1.0], [0.0, -0.2]])
    y = np.round(np.random.default_rng(13).standard_normal((12, 2)) * 1e-3 + [0.4, -0.2], 6)
    y[1::2, 0] = np.nan
    y[2::3, 1] = np.nan
    parts = dict(
        A=A,
        L=np.diag([0.3, 0.5]),
        H=np.eye(2),
        R=np.diag([1e-6, 1e-4]),
        m0=np.zeros(2),
        P0=np.eye(2),
    )
    return Case("repeated times", "continuous", times, y, parts)


def one_row_continuous():
    plain = repeated_times()
    return replace(plain, name="one row, continuous", times=plain.times[:1], y=plain.y[:1])


CASES = {
    case.name: case
    for case in (
        precise_sensor_vague_prior(),
        eighteen_decades_between_sensors_and_prior(),
        exact_arma(),
        near_collinear_sensors(),
        forty_sensors_over_ten_decades(),
        ordinary_units(),
        units_over_36_decades(),
        delta_start_and_singular_noise(),
        correlated_sensors_with_gaps(),
        nothing_observed(),
        one_row(),
        discrete_with_repeated_times(),
        integrated_walk_over_nine_decades_of_gaps(),
        twice_integrated_walk(),
        stiff("stiff", LAG, [0, 1]),
        stiff("stiff, one of two observed", LAG, [0]),
        stiff("stiff exchange", EXCHANGE, [0]),
        singular_diffusion(),
        delta_start_in_continuous_time(),
        repeated_times(),
        one_row_continuous(),
    )
}
