"""A whole bank in a file, and a bank on two devices."""

import json
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd

ONE = np.eye(1)
NAN = np.nan


def model(noise=1.0):
    return fd.StateSpaceModel(
        dist.MultivariateNormal(jnp.zeros(1), jnp.eye(1)),
        fd.LinearSDE(-0.5 * ONE, ONE, B=ONE),
        fd.LinearObservation(ONE, noise * ONE),
    )


@pytest.fixture(scope="module")
def bank():
    return fd.FilterBank(model(), fd.KalmanFilter(), num_inputs=1)


@pytest.fixture(scope="module")
def state(bank):
    """With an empty slot, a key that is a number and one whose name is no ASCII."""
    keys = ["a", "\N{GREEK SMALL LETTER ALPHA}", 7, "gone", -3]
    state, _ = bank.step(
        bank.init(), keys, 1.7e9 + np.arange(5.0), np.arange(5.0), [1, 1.5, 2, 3, 4]
    )
    state, _ = bank.step(state, [7, "a"], [0.0, 1.8e9], [1.0, np.inf])
    return bank.evict(state, ["gone"])[0]


@pytest.fixture
def path(bank, state, tmp_path):
    bank.save(tmp_path / "bank", state, position="offset 12", generations=2)
    return tmp_path / "bank"


def same(a, b):
    assert a.keys == b.keys
    assert a.slots == b.slots
    assert (a.late_count, a.refused_count) == (b.late_count, b.refused_count)
    for key in a.keys:
        for x, y in zip(jax.tree.leaves(a.of(key)), jax.tree.leaves(b.of(key)), strict=True):
            np.testing.assert_array_equal(x, y)


def test_a_bank_comes_back_to_the_bit_and_goes_on_likewise(bank, state, path):
    fresh = fd.FilterBank(model(), fd.KalmanFilter(), num_inputs=1)
    loaded, position = fresh.load(path)
    assert position == "offset 12"
    assert (state.late_count, state.refused_count) == (1, 1)
    same(loaded, state)
    more = (
        ["new", 7, "a", 7],
        1.7e9 + np.array([50.0, 60.0, 60.0, 70.0]),
        [1.0, 2.0, NAN, 4.0],
        [9, NAN, NAN, 5],
    )
    (a, found), (b, expected) = fresh.step(loaded, *more), bank.step(state, *more)
    same(a, b)
    np.testing.assert_array_equal(found.mean, expected.mean)


def test_how_new_keys_begin_is_kept(tmp_path):
    sampling = fd.FilterBank(model(), fd.EnsembleKalmanFilter(4), num_inputs=1)
    for key in (jax.random.key(3), jax.random.PRNGKey(3)):
        begin = sampling.init(t0=2.0, u0=0.5, key=key)
        sampling.save(tmp_path / "bank", begin)
        loaded, _ = sampling.load(tmp_path / "bank")
        same(sampling.add(loaded, ["x"], 2.0, 0.5), sampling.add(begin, ["x"], 2.0, 0.5))
        assert loaded.beginning.t0 == 2.0 and loaded.beginning.u0 == [0.5]


def test_damaged_and_foreign_files_are_refused(bank, path):
    good, rng = path.read_bytes(), np.random.default_rng(0)
    for k in range(100):
        bad = bytearray(good)
        at = int(rng.integers(len(bad)))
        if k % 2:
            bad[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(bad if k % 2 else bad[:at])
        with pytest.raises(ValueError, match="is refused: "):
            bank.load(path)
    path.write_bytes(good)
    for other, message in (
        (fd.FilterBank(model(2.0), fd.KalmanFilter(), num_inputs=1), "its model is "),
        (fd.FilterBank(model(), fd.KalmanFilter()), r"array `inputs` is .* of shape \(4, 1\)"),
        (bank.online, "it holds 'FilterBank'; expected 'OnlineState'"),
    ):
        with pytest.raises(ValueError, match=message):
            other.load(path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("slots", lambda a: np.zeros_like(a), "its slots are none"),
        ("clock", lambda a: np.full_like(a, np.inf), "a clock of it is not finite"),
        ("lengths", lambda a: a + 1, "its keys do not fit"),
        ("names", lambda a: np.full_like(a, 255), "its keys are none"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    bank, state, tmp_path, monkeypatch, name, change, message
):
    from filterdyn.online import bank as module

    arrays = module.bank_arrays(state)
    arrays[name] = change(arrays[name])
    monkeypatch.setattr(module, "bank_arrays", lambda _: arrays)
    bank.save(tmp_path / "bank", state)
    with pytest.raises(ValueError, match=message):
        bank.load(tmp_path / "bank")


TWO_DEVICES = """
import json, sys
import jax, jax.numpy as jnp, numpy as np, numpyro.distributions as dist
jax.config.update("jax_enable_x64", sys.argv[2] == "True")
import filterdyn as fd
assert len(jax.devices()) == 2
one = np.eye(1)
model = fd.StateSpaceModel(
    dist.MultivariateNormal(jnp.zeros(1), jnp.eye(1)),
    fd.LinearSDE(-0.5 * one, one, B=one), fd.LinearObservation(one, 1.0 * one))
spread = fd.FilterBank(model, fd.KalmanFilter(), num_inputs=1, devices=jax.devices())
alone = fd.FilterBank(model, fd.KalmanFilter(), num_inputs=1)
rng = np.random.default_rng(0)
keys = rng.integers(0, 6, 30)
batch = (keys, np.sort(rng.uniform(0, 9, 30)), rng.normal(size=30), rng.normal(size=30))
a, found = spread.step(spread.init(), *batch)
b, expected = alone.step(alone.init(), *batch)
close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6 if x.dtype == np.float32 else 1e-12)
close(found.mean, expected.mean); close(a.log_likelihood, b.log_likelihood)
table = a.tables[0]
shards = {s.device: s.data.shape for s in table.addressable_shards}
assert len(shards) == 2 and set(shards.values()) == {(1, 4, table.shape[2])}, shards
kernel = spread._kernel(a.layout)
rows = np.zeros((2, 1, kernel.kernel.width, kernel.lanes), table.dtype)
slots = np.zeros((2, 1, kernel.lanes), np.int32)
text = kernel._advance.lower(a.tables, slots, rows, np.zeros(2, np.int32)).compile().as_text()
assert not any(word in text for word in ("all-reduce", "all-gather", "collective-permute", "all-to-all"))
spread.save(sys.argv[1], a, position=3)
again, _ = spread.load(sys.argv[1])
more = ([4, 1], [10.0, 11.0], [0.5, np.nan])
x, _ = spread.step(again, *more)
y, _ = spread.step(a, *more)
for k in y.keys:
    assert all((p == q).all() for p, q in zip(jax.tree.leaves(x.of(k)), jax.tree.leaves(y.of(k))))
print(json.dumps([[int(k), float(y.of(k).mean[0])] for k in y.keys]))
"""


@pytest.mark.slow
def test_keys_are_spread_over_devices_that_do_not_wait_for_each_other(bank, tmp_path):
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    exact = str(bool(jax.config.jax_enable_x64))
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(TWO_DEVICES), str(tmp_path / "bank"), exact],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        check=True,
        capture_output=True,
        text=True,
    )
    # What two devices wrote, one goes on with.
    state, position = bank.load(tmp_path / "bank")
    state, _ = bank.step(state, [4, 1], [10.0, 11.0], [0.5, NAN])
    assert position == 3
    expected = dict(map(tuple, json.loads(found.stdout)))
    np.testing.assert_allclose(state.mean[:, 0], [expected[k] for k in state.keys], rtol=1e-6)
