"""Steps of a few systems side by side, and how a batch is laid out for them."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import lax

import filterdyn as fd
from filterdyn.online.bank_schedule import in_blocks
from filterdyn.online.lanes import NotInLanes, in_lanes

LANES = 4
ANGLE = np.array([[0.9, 0.2], [-0.3, 0.8]])


FUNCTIONS = {
    "products": lambda x, y: (y @ x, x @ y[0], y.T @ y, jnp.einsum("ij,j,ik->k", y, x[0], y)),
    "constants": lambda x, y: (ANGLE @ x, jnp.eye(2) * x, jnp.arange(3.0) @ y, x + 1),
    "entries": lambda x, y: (jnp.exp(x) / (1 + y[0] ** 2), jnp.clip(x, -0.1, 0.2), jnp.arctan2(x, 2.0)),
    "shapes": lambda x, y: (
        jnp.concatenate([x, y]),
        jnp.stack([x[0], y[1]], axis=1),
        y[::-1, 1:],
        x.T.reshape(4),
        jnp.pad(x, ((1, 0), (0, 2))),
        y[jnp.array([2, 0])],
        jnp.diagonal(x),
        lax.dynamic_slice(y, (1, 0), (2, 1)),
    ),
    "sums": lambda x, y: (jnp.cumsum(y, axis=0), y.max(axis=1), (x > 0).any(), jnp.prod(x)),
    "choices": lambda x, y: (
        jnp.where(x > 0, x, -x),
        lax.cond(x[0, 0] > 0, lambda: x, lambda: 2 * x),
        lax.switch(jnp.int32(3 * x[0, 1]), [lambda: y, lambda: -y, lambda: y * y]),
    ),
    "loops": lambda x, y: (
        lax.fori_loop(0, 3, lambda i, c: c @ x + i * jnp.asarray(ANGLE)[i // 2], x),
        lax.fori_loop(0, 2, lambda i, c: c + y[i] * i, y[2]),
        lax.scan(lambda c, row: (c + row @ x, c * row.sum()), y[0], y),
        lax.scan(lambda c, k: (c * k, c), x, jnp.arange(3.0), reverse=True),
    ),
    "derivatives": lambda x, y: (
        jax.jacfwd(lambda v: jnp.sin(v) * x[0])(y[0]),
        jax.grad(lambda v: (v @ v).sum() ** 2)(x),
    ),
    "counts": lambda x, y: (x.astype(jnp.int32) + 1, jnp.sum(x > 0), lax.stop_gradient(x)),
}  # fmt: skip


def systems(rng=None):
    rng = np.random.default_rng(3) if rng is None else rng
    return rng.normal(size=(2, 2, LANES)), rng.normal(size=(3, 2, LANES))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_systems_side_by_side_are_what_each_is_alone(name):
    function, (x, y) = FUNCTIONS[name], systems()
    found = jax.tree.leaves(jax.jit(in_lanes(function, LANES))(x, y))
    for k in range(LANES):
        alone = jax.tree.leaves(jax.jit(function)(x[..., k], y[..., k]))
        assert len(alone) == len(found)
        for one, several in zip(alone, found, strict=True):
            assert several.dtype == one.dtype
            np.testing.assert_allclose(several[..., k], one, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: jnp.linalg.cholesky(x @ x.T + jnp.eye(2)),
        lambda x, y: lax.while_loop(lambda c: c.sum() < 5, lambda c: c + 1, x),
        lambda x, y: jnp.sort(y, axis=0),
        lambda x, y: y[jnp.int32(x[0, 0])],
        lambda x, y: jax.random.normal(jax.random.key(jnp.int32(x[0, 0])), (2,)),
    ],
    ids=["factor", "while", "sort", "index", "random"],
)
def test_what_cannot_be_done_in_lanes_says_so(function):
    with pytest.raises(NotInLanes):
        jax.eval_shape(in_lanes(function, LANES), *systems())


def test_a_block_holds_different_keys_and_those_of_one_key_follow_each_other():
    rng = np.random.default_rng(0)
    for devices, keys, count in ((1, 5, 23), (2, 9, 40), (3, 2, 7), (2, 1, 1), (1, 8, 8)):
        slots = np.sort(rng.integers(0, keys, count))
        rank = np.array([(slots[:i] == s).sum() for i, s in enumerate(slots)])
        blocks = in_blocks(slots, rank, devices, LANES)
        assert blocks.slots.shape == blocks.source.shape
        assert (blocks.source.reshape(-1)[blocks.at] == np.arange(count)).all()
        done = np.zeros(count, int)
        for device in range(devices):
            for block in range(blocks.counts[device]):
                events = np.unique(blocks.source[device, block])
                assert (slots[events] % devices == device).all()
                assert len(np.unique(slots[events])) == len(events)
                assert (
                    slots[blocks.source[device, block]] // devices == blocks.slots[device, block]
                ).all()
                for event in events:
                    before = (slots == slots[event]) & (rank < rank[event])
                    assert done[before].all()
                done[events] += 1
        assert (done == 1).all()


def model(dynamics):
    initial = dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2))
    seen = fd.LinearObservation(np.array([[1.0, 0.0]]), 0.2 * np.eye(1))
    return fd.StateSpaceModel(initial, dynamics, seen)


LINEAR = model(fd.LinearTransition(ANGLE, 0.1 * np.eye(2)))


def pendulum(t, x, u):
    return jnp.stack([x[1], -jnp.sin(x[0]) - 0.1 * x[1]])


SWINGING = model(fd.SDE(pendulum, jnp.array([0.0, 0.3]), substeps=2))
FILTERS = [
    (LINEAR, fd.KalmanFilter(), LANES),
    (LINEAR, fd.ParticleFilter(8), 0),
    pytest.param(SWINGING, fd.ExtendedKalmanFilter(), LANES, marks=pytest.mark.slow),
    pytest.param(SWINGING, fd.UnscentedKalmanFilter(), LANES, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("model", "filter", "lanes"), FILTERS)
def test_what_a_key_gets_does_not_depend_on_its_lane_to_the_bit(model, filter, lanes):
    bank = fd.FilterBank(model, filter)
    begin = bank.init(key=jax.random.key(0))
    assert bank._kernel(begin.layout).lanes == lanes
    rng = np.random.default_rng(1)
    times, y = rng.uniform(0, 3, 12), rng.normal(size=(12, 7))
    y[4] = np.nan
    keys = np.array([3, 8, 1, 5, 2, 9, 4])
    state, alone = begin, []
    for t, row in zip(np.sort(times), y, strict=True):
        state, found = bank.step(state, keys, t, row)
        alone.append(np.stack([found.log_likelihood, found.mean[:, 0]]))
    # Another number of keys in another order, with all events of a key in one call.
    some = keys[[5, 0, 2]]
    again, found = bank.step(
        begin, np.repeat(some, 12), np.tile(np.sort(times), 3), y[:, [5, 0, 2]].T.reshape(-1)
    )
    expected = np.stack(alone)[:, :, [5, 0, 2]]
    np.testing.assert_array_equal(found.log_likelihood.reshape(3, 12).T, expected[:, 0])
    np.testing.assert_array_equal(found.mean[:, 0].reshape(3, 12).T, expected[:, 1])
    for key in some:
        for a, b in zip(again.of(key).vectors, state.of(key).vectors, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_same_keys_are_looked_up_once_and_others_anew():
    bank = fd.FilterBank(LINEAR, fd.KalmanFilter())
    keys = np.array([4, 2])
    state, _ = bank.step(bank.init(), keys, 0.0, [1.0, 2.0])
    first = bank._last
    state, _ = bank.step(state, keys.copy(), 1.0, [1.0, 2.0])
    assert bank._last is first
    keys[:] = 2, 4
    other, found = bank.step(state, keys, 2.0, [5.0, -5.0])
    np.testing.assert_array_equal(found.innovation[:, 0] > 0, [True, False])
    assert bank._last is not first
    gone, _ = bank.evict(other, [2])
    back, found = bank.step(gone, keys, 3.0, [1.0, 1.0])
    assert back.keys == (4, 2)
    assert back.of(2).time == 3.0 and found.mean[0, 0] < found.mean[1, 0] + 10
