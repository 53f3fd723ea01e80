"""Checkpoints: a state that comes back to the bit, and files that are refused."""

import hashlib
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd
from filterdyn.online.checkpoint import fingerprint, write

ONE = np.eye(1)


def model(noise=1.0):
    return fd.StateSpaceModel(
        dist.MultivariateNormal(jnp.zeros(1), jnp.eye(1)),
        fd.LinearSDE(-0.5 * ONE, ONE, B=ONE),
        fd.LinearObservation(ONE, noise * ONE),
    )


@pytest.fixture(scope="module")
def online():
    return fd.OnlineFilter(model(), fd.KalmanFilter(), num_inputs=1)


@pytest.fixture(scope="module")
def state(online):
    return online.step(online.init(1.7e9, 0.5), 1.7e9 + 0.1, 0.3, -1.0)[0]


@pytest.fixture
def path(online, state, tmp_path):
    online.save(tmp_path / "state", state, position=17)
    return tmp_path / "state"


def same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)
        assert np.asarray(x).dtype == np.asarray(y).dtype


def test_a_saved_state_comes_back_to_the_bit_and_goes_on_likewise(online, state, path):
    fresh = fd.OnlineFilter(model(), fd.KalmanFilter())
    loaded, position = fresh.load(path)
    assert position == 17
    same(loaded, state)
    for t in (1.7e9 + 1, 1.7e9 + 2.5):
        state, expected = online.step(state, t, 0.7)
        loaded, result = fresh.step(loaded, t, 0.7)
        same((loaded, result), (state, expected))
    assert fresh.compile_count == 1


def test_random_keys_are_kept(tmp_path):
    online = fd.OnlineFilter(model(), fd.EnsembleKalmanFilter(4))
    for key in (jax.random.key(3), jax.random.PRNGKey(3)):
        start = online.init(0.0, key=key)
        online.save(tmp_path / "state", start)
        same(online.load(tmp_path / "state")[0], start)


def test_older_generations_stay_and_are_no_more_than_asked_for(online, tmp_path):
    path = tmp_path / "state"
    for k in range(5):
        online.save(path, online.init(k, 0.0), position=k, generations=3)
    kept = {name: online.load(tmp_path / name)[1] for name in sorted(os.listdir(tmp_path))}
    assert kept == {"state": 4, "state.1": 3, "state.2": 2}


def test_a_thousand_damaged_files_are_all_refused(online, path):
    good, rng = path.read_bytes(), random.Random(0)
    for k in range(1000):
        bad = bytearray(good)
        if k % 3 == 0:
            bad = bad[: rng.randrange(len(bad))]
        elif k % 3 == 1:
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        else:
            i, j = rng.sample(range(len(bad)), 2)
            bad[i], bad[j] = bad[j] ^ 1, bad[i]
        assert bytes(bad) != good
        path.write_bytes(bad)
        with pytest.raises(ValueError, match="is refused: "):
            online.load(path)
    path.write_bytes(good + b"x")
    with pytest.raises(ValueError, match="bytes; expected"):
        online.load(path)


def test_files_of_another_kind_are_refused_by_their_first_difference(online, state, path):
    other = fd.OnlineFilter(model(2.0), fd.KalmanFilter())
    fresh = path.with_name("without time")
    write(
        fresh, "OnlineState", {}, dict(model=fingerprint(model(), online.filter), generator=None), 1
    )
    for wrong, message in (
        (lambda: online.load(fresh), "array `float(64|32)` is missing"),
        (lambda: other.load(path), "its model is "),
        (lambda: online.load(path, max_bytes=10), "more than `max_bytes` 10"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()


def forged(path, change, tail=None):
    """The file with another manifest, whose sum is right."""
    content = path.read_bytes()
    head = len(b"filterdyn checkpoint\n")
    length = int(content[head + 64 : head + 80])
    manifest = json.loads(content[head + 80 : head + 80 + length])
    change(manifest)
    text = json.dumps(manifest).encode()
    digest = hashlib.sha256(text).hexdigest().encode()
    blobs = content[head + 80 + length :] if tail is None else tail
    path.write_bytes(content[:head] + digest + f"{len(text):016d}".encode() + text + blobs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: m.update(format=2, version="9.0"),
            "its format is 2 .written by filterdyn '9.0'",
        ),
        (lambda m: m.update(kind="fleet"), "it holds 'fleet'; expected 'OnlineState'"),
        (lambda m: m.pop("arrays"), "manifest is malformed"),
        (lambda m: m.update(arrays=3), "manifest is malformed"),
        (lambda m: m["facts"].pop("position"), "does not say `position`"),
        (lambda m: m["facts"].update(generator="rm -rf"), "generator of random numbers"),
        (lambda m: m["arrays"]["time"].update(shape=[3]), "`time` is not what its manifest says"),
        (
            lambda m: m["arrays"].update(t=m["arrays"].pop("time")),
            "SHA-256 of array `input` differs",
        ),
        (lambda m: m.update(arrays={}), "bytes; expected"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(online, path, change, message):
    forged(path, change)
    with pytest.raises(ValueError, match=message):
        online.load(path)


class Bomb:
    def __reduce__(self):
        return os.mkdir, (os.environ["BOMB"],)


def test_a_pickle_is_not_executed(online, path, tmp_path, monkeypatch):
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    bomb = pickle.dumps(Bomb())
    path.write_bytes(bomb)
    with pytest.raises(ValueError, match="and not with"):
        online.load(path)
    online.save(path, online.init(0.0, 0.0))
    np.save(tmp_path / "bomb.npy", np.array([Bomb()], object), allow_pickle=True)
    blob = (tmp_path / "bomb.npy").read_bytes()
    digest = hashlib.sha256(blob).hexdigest()

    def plant(manifest):
        entry = dict(shape=[1], dtype="object", bytes=len(blob), sha256=digest)
        manifest["arrays"] = {"time": entry}

    forged(path, plant, blob)
    with pytest.raises(ValueError, match="array `time` cannot be read"):
        online.load(path)
    assert not (tmp_path / "exploded").exists()


ROWS, KILLS = 4000, 20
WORKER = """
import json, os, sys
import numpy as np, jax.numpy as jnp, numpyro, numpyro.distributions as dist
numpyro.enable_x64()
import filterdyn as fd

def run(path, out, rows):
    one = np.eye(1)
    model = fd.StateSpaceModel(
        dist.MultivariateNormal(jnp.zeros(1), jnp.eye(1)),
        fd.LinearSDE(-0.5 * one, one), fd.LinearObservation(one, one))
    online = fd.OnlineFilter(model, fd.KalmanFilter())
    try:
        state, done = online.load(path)
    except FileNotFoundError:
        state, done = online.init(0.0), 0
    file = open(out, "r+b" if done else "wb")
    file.truncate(8 * done)
    file.seek(8 * done)
    for k in range(done, rows):
        state, result = online.step(state, 0.1 * k, np.sin(k))
        file.write(np.float64(result.mean[0]).tobytes())
        if k % 7 == 0:
            file.flush()
            online.save(path, state, position=k + 1, generations=2)
    file.close()
    online.save(path, state, position=rows)

# A process for every life, which need not import everything again. (JAX has not started here.)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        run(*json.loads(line))
        os._exit(0)
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_a_stream_killed_at_twenty_random_points_goes_on_to_the_bit(tmp_path):
    path, out, whole = (str(tmp_path / name) for name in ("state", "out", "whole"))
    rng, killed = random.Random(1), 0
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as worker:

        def live(path, out):
            worker.stdin.write(json.dumps([path, out, ROWS]) + "\n")
            worker.stdin.flush()
            return int(worker.stdout.readline())

        for _ in range(KILLS):
            position = fd_position(tmp_path / "state")
            pid = live(path, out)
            while fd_position(tmp_path / "state") == position:
                time.sleep(0.001)
            time.sleep(0.02 * rng.random())
            os.kill(pid, signal.SIGKILL)
            killed += int(worker.stdout.readline()) == signal.SIGKILL
            assert fd_position(tmp_path / "state") < ROWS
        for files in ((path, out), (str(tmp_path / "other"), whole)):
            live(*files)
            assert int(worker.stdout.readline()) == 0
        worker.stdin.close()
    assert killed == KILLS
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()
    assert (tmp_path / "out").stat().st_size == 8 * ROWS


def fd_position(path):
    """How far the checkpoint is, read without the library."""
    if not path.exists():
        return 0
    content = path.read_bytes()
    return int(content.split(b'"position": ')[1].split(b"}")[0])
