"""Fleets: each key by itself, whoever else is in the bank."""

import datetime

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd
from filterdyn.online.bank_schedule import width_for

EXACT = jax.config.jax_enable_x64
TOLERANCE = 1e-12 if EXACT else 1e-5
NAN = np.nan
ONE = np.eye(1)
INITIAL = dist.MultivariateNormal(jnp.zeros(1), jnp.eye(1))
MODEL = fd.StateSpaceModel(
    INITIAL, fd.LinearSDE(-0.5 * ONE, ONE, B=ONE), fd.LinearObservation(ONE, ONE)
)
PUMPS = ("north", "south", 7)
PARTS = ("mean", "cov", "innovation", "innovation_cov", "log_likelihood", "nis")


def events(count=40, seed=0):
    """Of three pumps in no order, with repeated times, missing measurements and inputs held."""
    rng = np.random.default_rng(seed)
    keys = [PUMPS[k] for k in rng.integers(0, 3, count)]
    times = np.sort(rng.uniform(0.0, 10.0, count)).round(1)
    y = np.where(rng.random(count) < 0.2, NAN, rng.normal(size=count))
    u = np.where(rng.random(count) < 0.5, NAN, rng.normal(size=count))
    return keys, times, y, u


@pytest.fixture(scope="module")
def bank():
    return fd.FilterBank(MODEL, fd.KalmanFilter(), num_inputs=1)


def alone(bank, t0=0.0, u0=0.3):
    """Every event by the filter of its key alone."""
    states = {k: bank.online.init(t0, u0) for k in PUMPS}
    results = []
    for key, t, y, u in zip(*events(), strict=True):
        given = None if np.isnan(u) else u
        states[key], result = bank.online.step(states[key], t, y, given)
        results.append(result)
    return states, results


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=10 * TOLERANCE, atol=10 * TOLERANCE)


def same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def same_fleet(a, b):
    assert a.keys == b.keys
    same([a.of(k) for k in a.keys], [b.of(k) for k in b.keys])


def test_each_key_is_filtered_as_if_it_were_alone(bank):
    states, results = alone(bank)
    state, found = bank.step(bank.init(PUMPS, 0.0, 0.3), *events())
    assert (found.fate == "used").all()
    for part in PARTS:
        close(getattr(found, part), np.stack([getattr(r, part) for r in results]))
    for k, key in enumerate(PUMPS):
        one = state.of(key)
        close(one.mean, states[key].mean)
        close(state.mean[k], states[key].mean)
        close(state.cov[k], states[key].cov)
        close(state.log_likelihood[k], states[key].log_likelihood)
        assert one.time == states[key].time == state.times[k]
        close(one.input, states[key].input)
    assert not state.status.any()


def test_the_order_of_a_batch_and_its_cuts_do_not_matter(bank):
    keys, times, y, u = events()
    begin = bank.init(PUMPS, 0.0, 0.3)
    whole, _ = bank.step(begin, keys, times, y, u)
    order = np.random.default_rng(1).permutation(len(keys))
    # (Of one key and one instant the events stay in the order in which they come.)
    order = sorted(order, key=lambda i: (keys[i] != "south", times[i], i))
    mixed, found = bank.step(begin, [keys[i] for i in order], times[order], y[order], u[order])
    same_fleet(mixed, whole)
    assert len(found.mean) == len(keys)
    state = begin
    for cut in (slice(0, 25), slice(25, 40)):
        state, _ = bank.step(state, keys[cut], times[cut], y[cut], u[cut])
    same_fleet(state, whole)


def test_a_new_key_begins_at_its_first_event(bank):
    state, found = bank.step(
        bank.init(), ["a", "b", "a"], [3.0, 5.0, 2.0], [1.0, 2.0, NAN], [0.0] * 3
    )
    assert state.keys == ("a", "b") and "a" in state and len(state) == 2
    # Of N(0, 1) and a sensor of variance 1; for `a` a unit of time later.
    close(found.mean[1], [1.0])
    expected, _ = bank.online.step(bank.online.init(2.0, 0.0), 3.0, 1.0)
    close(state.of("a").mean, expected.mean)
    late, _ = bank.step(bank.init(t0=4.0), ["a", "b"], [3.0, 5.0], [1.0, 2.0], [0.0, 0.0])
    assert late.keys == ("b",) and late.late_count == 1


def test_bad_events_are_said_and_leave_the_others_as_they_are(bank):
    keys, times, y, u = events()
    begin, _ = bank.step(bank.init(PUMPS, 0.0, 0.3), PUMPS, [1.0, 0.0, 0.0], [0.1, 0.2, 0.3])
    good, _ = bank.step(begin, keys, times + 1, y, u)
    bad = (
        ["north", 7, "south", 7],
        [0.5, NAN, 9.0, 9.0],
        [0.0, 0.0, np.inf, 0.0],
        [0.0, 0.0, 0.0, -np.inf],
    )
    more = [np.concatenate([b, a]) for b, a in zip(bad[1:], (times + 1, y, u), strict=True)]
    state, found = bank.step(begin, [*bad[0], *keys], *more)
    assert found.fate[:4].tolist() == ["late", "refused", "refused", "refused"]
    assert found.used[4:].all()
    for key in PUMPS:
        same(state.of(key), good.of(key))
    assert (state.late_count, state.refused_count) == (1, 3)
    assert (found.log_likelihood[:4] == 0).all() and np.isnan(found.mean[:4]).all()


def test_a_key_that_fails_does_not_poison_another():
    model = fd.StateSpaceModel(
        INITIAL,
        fd.LinearSDE(-0.5 * ONE, ONE),
        fd.Observation(lambda t, x, u: dist.LogNormal(x, 0.3).to_event(1)),
    )
    bank = fd.FilterBank(model, fd.ExtendedKalmanFilter())
    keys = ["good", "bad", "good", "bad"]
    state, found = bank.step(bank.init(), keys, [0.0, 0.0, 1.0, 1.0], [1.1, -1.0, 0.8, 1.0])
    fine, _ = bank.step(bank.init(), keys, [0.0, 0.0, 1.0, 1.0], [1.1, 1.0, 0.8, 1.0])
    failed = int(fd.Status.OBSERVATION_OUT_OF_SUPPORT)
    assert found.status.tolist() == [0, failed, 0, failed]
    assert state.status.tolist() == [0, failed]
    assert np.isneginf(state.log_likelihood).tolist() == [False, True]
    same(state.of("good"), fine.of("good"))


def test_an_evicted_key_comes_back_to_the_bit(bank):
    keys, times, y, u = events()
    state, _ = bank.step(bank.init(PUMPS, 0.0, 0.3), keys, times, y, u)
    fewer, gone = bank.evict(state, ["south"])
    assert fewer.keys == ("north", 7) and "south" not in fewer
    other, _ = bank.step(fewer, ["other"], [0.0], [1.0], [0.5])
    assert other.slots["other"] == state.slots["south"]
    back = bank.restore(other, gone)
    same(back.of("south"), state.of("south"))
    later = (["south"], [12.0], [0.3], [NAN])
    same(bank.step(back, *later)[0].of("south"), bank.step(state, *later)[0].of("south"))
    with pytest.raises(ValueError, match="'south' is there already"):
        bank.restore(back, gone)
    with pytest.raises(KeyError, match="'south' is not among its 2 keys"):
        bank.evict(fewer, ["south"])


def test_tables_and_batches_grow_in_powers_of_two(bank):
    state, sizes = bank.init(t0=0.0), set()
    assert [width_for(n) for n in (1, 2, 3, 5, 8, 9)] == [1, 2, 4, 8, 8, 16]
    for count in (3, 3, 4, 3):
        known = len(state)
        state, _ = bank.step(
            state, range(known, known + count), 1.0, np.zeros(count), np.zeros(count)
        )
        sizes.add(state.tables[0].shape[1])
    assert sizes == {4, 8, 16}
    compiled = bank.compile_count
    for count in (3, 4):
        for seed in range(3):
            chosen = np.random.default_rng(seed).choice(len(state), count, replace=False)
            state, _ = bank.step(state, chosen, 2.0 + 3 * count + seed, np.zeros(count))
    assert bank.compile_count == compiled


def test_a_prediction_moves_every_clock_that_is_not_past(bank):
    state, _ = bank.step(bank.init(PUMPS, 0.0, 0.3), ["north"], [5.0], [1.0])
    moved = bank.predict_to(state, 2.0)
    assert moved.times.tolist() == [5.0, 2.0, 2.0]
    close(moved.of("south").mean, bank.online.predict_to(bank.online.init(0.0, 0.3), 2.0).mean)
    ahead = bank.online.forecast(moved.of("south"), [3.0])
    assert ahead.state_mean.shape == (1, 1)


def test_times_may_be_datetimes_with_a_zone(bank):
    noon = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.UTC)
    east = datetime.timezone(datetime.timedelta(hours=2))
    times = [
        noon + datetime.timedelta(milliseconds=1500),
        datetime.datetime(2026, 3, 1, 14, tzinfo=east),
    ]
    state, _ = bank.step(bank.init(t0=noon), ["a", "b"], times, [0.1, 0.2], [0.0, 0.0])
    assert (state.times - noon.timestamp()).tolist() == [1.5, 0.0]
    with pytest.raises(ValueError, match=r"`times` is .* without a time zone"):
        bank.step(state, ["a"], [times[0].replace(tzinfo=None)], [0.1])


def test_nothing_happens_without_events(bank):
    begin = bank.init(PUMPS, 0.0, 0.3)
    state, found = bank.step(begin, [], [], [])
    assert found.mean.shape == (0, 1) and found.fate.shape == (0,)
    same_fleet(state, begin)
    empty = bank.predict_to(bank.init(), 5.0)
    assert len(empty) == 0 and empty.times.shape == empty.status.shape == (0,)


def test_a_state_is_a_value_and_a_pytree(bank):
    before, _ = bank.step(bank.init(PUMPS, 0.0, 0.3), *events())
    kept = [before.of(k) for k in PUMPS]
    bank.step(before, ["north", "new"], [50.0, 50.0], [1.0, 1.0], [0.0, 0.0])
    same([before.of(k) for k in PUMPS], kept)
    copied = jax.tree.map(lambda x: x + 0, before)
    same_fleet(copied, before)
    assert jax.tree.structure(copied) == jax.tree.structure(before)


def test_a_bank_that_changes_its_state_gives_the_same(bank):
    eager = fd.FilterBank(MODEL, fd.KalmanFilter(), num_inputs=1, donate=True)
    state, _ = eager.step(eager.init(PUMPS, 0.0, 0.3), *events())
    expected, _ = bank.step(bank.init(PUMPS, 0.0, 0.3), *events())
    same_fleet(state, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ensemble", "particle"])
def test_a_filter_that_samples_repeats_the_batch_of_its_key(name):
    filter = {
        "ensemble": fd.EnsembleKalmanFilter(6),
        "particle": fd.ParticleFilter(8),
    }[name]
    model = fd.StateSpaceModel(
        INITIAL, fd.LinearSDE(-0.5 * ONE, ONE), fd.LinearObservation(ONE, ONE)
    )
    bank = fd.FilterBank(model, filter)
    begin = bank.init(key=jax.random.key(5))
    t, y = np.array([0.0, 0.7, 0.7, 2.0]), np.array([0.3, -0.2, NAN, 0.5])
    keys = ["b", "a"] * 4
    state, found = bank.step(begin, keys, np.repeat(t, 2), np.repeat(y, 2) + [0.0, 1.0] * 4)
    for k, key in enumerate(("b", "a")):
        one = bank.add(begin, [key], 0.0).of(key).filter_state.key
        whole = fd.filter(model, fd.Series(t, y + k), filter, key=one)
        close(found.mean[k::2], whole.mean)
        close(state.of(key).log_likelihood, whole.log_likelihood)
    assert not np.allclose(found.mean[::2], found.mean[1::2] - 1.0)


@pytest.mark.slow
def test_on_an_accelerator_keys_are_filtered_abreast_with_the_same_answers(bank):
    abreast = fd.FilterBank(MODEL, fd.KalmanFilter(), num_inputs=1)
    abreast._abreast = True
    cut = [x[:12] for x in events()]
    state, found = abreast.step(abreast.init(PUMPS, 0.0, 0.3), *cut)
    expected, results = bank.step(bank.init(PUMPS, 0.0, 0.3), *cut)
    close(found.log_likelihood, results.log_likelihood)
    close(found.mean, results.mean)
    close(state.mean, expected.mean)


def test_what_does_not_fit_is_refused_by_name(bank):
    state = bank.init(PUMPS, 0.0, 0.3)
    for error, message, call in (
        (
            ValueError,
            r"`times` has shape \(2,\); expected \(1,\)",
            lambda: bank.step(state, ["north"], [1, 2], [1]),
        ),
        (
            ValueError,
            r"`ys` has shape \(1, 2\)",
            lambda: bank.step(state, ["north"], [1], [[1, 2]]),
        ),
        (
            ValueError,
            r"`us` has shape \(1, 2\)",
            lambda: bank.step(state, ["north"], [1], [1], [[1, 2]]),
        ),
        (ValueError, "'north' is there already", lambda: bank.add(state, ["north"], 0.0)),
        (TypeError, "`keys` has one that is no key", lambda: bank.step(state, [[1]], [1], [1])),
        (
            TypeError,
            "a key is tuple; expected an integer or a string",
            lambda: bank.add(state, [(1,)], 0.0),
        ),
        (ValueError, "`t0` is None", lambda: bank.init(["a"])),
        (ValueError, r"`u0` has shape \(2,\)", lambda: bank.init(u0=[1.0, 2.0])),
        (
            ValueError,
            "`devices` is empty",
            lambda: fd.FilterBank(MODEL, fd.KalmanFilter(), devices=[]),
        ),
    ):
        with pytest.raises(error, match=message):
            call()


def test_dynamics_that_need_an_input_say_so():
    model = fd.StateSpaceModel(
        INITIAL, fd.ODE(lambda t, x, u: u - x, substeps=1), fd.LinearObservation(ONE, ONE)
    )
    bank = fd.FilterBank(model, fd.ExtendedKalmanFilter(), num_inputs=1)
    with pytest.raises(ValueError, match="`u0` is missing, and ODE needs"):
        bank.init(["a"], 0.0)
    state, found = bank.step(
        bank.init(), ["a", "b", "a"], [0.0, 0.0, 1.0], [0.1] * 3, [NAN, 1.0, 1.0]
    )
    assert found.fate.tolist() == ["refused", "used", "used"]
    assert state.of("a").time == 1.0
    _, found = bank.step(state, ["c", "a"], [0.0, 2.0], [0.1, 0.1])
    assert found.fate.tolist() == ["refused", "used"]
