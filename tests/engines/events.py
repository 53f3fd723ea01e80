"""What the engines are fed, and what has to come out."""

import numpy as np

import filterdyn as fd

KEYS = ("pump", "fan", "valve")


def messages(count, seed=0):
    """Events of all keys, in the order of their times, some entries missing."""
    rng = np.random.default_rng(seed)
    for time in np.cumsum(rng.uniform(0.01, 0.5, count)).round(3):
        y = [None if rng.random() < 0.2 else float(v) for v in rng.normal(size=2).round(3)]
        yield str(rng.choice(KEYS)), dict(time=float(time), y=y, u=[round(rng.normal(), 3)])


def expected(online, events):
    """For each key its rows, by the online filter."""
    states, rows = {}, {}
    for key, event in events:
        if key not in states:
            states[key] = online.init(event["time"])
        y = np.array(event["y"], float)
        states[key], step = online.step(states[key], event["time"], y, event["u"])
        rows.setdefault(key, {})[event["time"]] = step
    return rows


def agrees(row, step):
    """Is an engine's row what the step says?"""
    close = lambda a, b: np.allclose(np.array(a, float), b, rtol=1e-12, atol=1e-12, equal_nan=True)
    return (
        close(row["mean"], step.mean)
        and close(row["sd"], np.sqrt(np.diagonal(step.cov)))
        and close(row["innovation"], step.innovation)
        and close(row["nis"], step.nis)
        and close(row["log_likelihood"], step.log_likelihood)
        and row["status"] == fd.Status(int(step.status)).name
    )
