"""Events out of order, repeated, and across a restart."""

import datetime

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd

NAN = np.nan
MODEL = fd.StateSpaceModel(
    dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)),
    fd.LinearSDE(np.array([[0.0, 1.0], [-1.0, -0.3]]), np.array([[0.0], [0.5]])),
    fd.LinearObservation(np.eye(2), 0.1 * np.eye(2)),
)


@pytest.fixture(scope="module")
def online():
    return fd.OnlineFilter(MODEL, fd.KalmanFilter(), num_inputs=0)


def make_events(count=60, seed=0):
    """Of two sensors that see an entry each, with the delay of their arrival; the second is slow."""
    rng = np.random.default_rng(seed)
    times = np.sort(rng.uniform(0, 12, count)).round(1)  # some of them equal
    events = []
    for k, t in enumerate(times):
        slow = k % 2
        y = [NAN, rng.normal()] if slow else [rng.normal(), NAN]
        delay = rng.uniform(0, 3.5) if slow else 0.0
        events.append((t, np.array(y), k, t + delay))
    return events


EVENTS = make_events()
ARRIVING = sorted(EVENTS, key=lambda e: e[3])


def filtered(online, events):
    state = online.init(0.0)
    for t, y, *_ in events:
        state, _ = online.step(state, t, y)
    return state


def same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def expected_survivors(window):
    """Which events a window lets through, from its definition."""
    newest, kept = 0.0, []
    for event in ARRIVING:
        if event[0] >= newest - window:
            kept.append(event)
            newest = max(newest, event[0])
    return sorted(kept, key=lambda e: (e[0], e[2]))


@pytest.mark.parametrize(
    ("policy", "window"),
    [(fd.ReplayLate(window=100.0), np.inf), (fd.ReplayLate(window=2.0), 2.0)],
    ids=["full", "two seconds"],
)
def test_events_in_the_window_give_the_sorted_stream_to_the_bit(online, policy, window):
    stream = fd.EventStream(online, online.init(0.0), policy)
    fates = [stream.push(t, y, sequence=k).fate for t, y, k, _ in ARRIVING]
    kept = expected_survivors(window)
    same(stream.state, filtered(online, kept))
    assert stream.late_count == fates.count("late") == len(EVENTS) - len(kept)
    assert fates.count("replayed") > 5
    assert (len(kept) < len(EVENTS)) == np.isfinite(window)


def test_late_events_are_dropped_and_counted(online):
    stream = fd.EventStream(online, online.init(0.0), fd.DropLate())
    arrivals = [stream.push(t, y) for t, y, *_ in ARRIVING]
    kept = [e for e, a in zip(ARRIVING, arrivals, strict=True) if a.fate == "new"]
    same(stream.state, filtered(online, kept))
    newest = np.maximum.accumulate([e[0] for e in ARRIVING])
    assert stream.late_count == sum(e[0] < n for e, n in zip(ARRIVING, newest, strict=True)) > 5


def test_a_rejected_event_is_an_error_and_changes_nothing(online):
    stream = fd.EventStream(online, online.init(0.0), fd.RejectLate())
    stream.push(1.0, [0.1, 0.2], sequence=1)
    before = stream.state
    with pytest.raises(ValueError, match=r"`t` is 0\.5, before the last event at 1\.0"):
        stream.push(0.5, [0.1, 0.2], sequence=0)
    assert stream.state is before
    assert stream.push(1.0, [0.3, 0.2], sequence=0).fate == "new"


def test_a_repeated_event_is_taken_once(online):
    stream = fd.EventStream(online, online.init(0.0), fd.ReplayLate(window=100.0))
    for t, y, k, _ in ARRIVING:
        stream.push(t, y, sequence=k)
        assert stream.push(t, y, sequence=k) == fd.Arrival("duplicate", ())
    same(stream.state, filtered(online, EVENTS))
    assert stream.duplicate_count == len(EVENTS)


def test_what_is_filtered_again_is_returned(online):
    stream = fd.EventStream(online, online.init(0.0), fd.ReplayLate(window=5.0))
    for t in (1.0, 2.0, 3.0):
        stream.push(t, [t, NAN])
    arrival = stream.push(1.5, [NAN, 0.4])
    assert arrival.fate == "replayed"
    assert [np.isnan(r.innovation).tolist() for r in arrival.results] == [
        [True, False],
        [False, True],
        [False, True],
    ]
    np.testing.assert_array_equal(arrival.results[-1].mean, stream.state.mean)


def test_memory_is_bounded(online):
    stream = fd.EventStream(
        online, online.init(0.0), fd.ReplayLate(window=100.0, capacity=3), remember=4
    )
    for k in range(10):
        stream.push(float(k), [0.1, 0.2], sequence=k)
    assert len(stream._events) == 3
    assert len(stream._seen) == 4
    assert stream.push(7.5, [0.1, 0.2]).fate == "replayed"
    assert stream.push(5.5, [0.1, 0.2]).fate == "late"


def test_a_measurement_that_does_not_fit_changes_nothing(online):
    stream = fd.EventStream(online, online.init(0.0), fd.ReplayLate(window=5.0))
    stream.push(1.0, [0.1, 0.2], sequence=0)
    stream.push(2.0, [0.1, 0.2], sequence=1)
    before, kept = stream.state, stream._events
    for bad in ([0.1], [np.inf, 0.0]):
        with pytest.raises(ValueError, match="`y` has"):
            stream.push(1.5, bad, sequence=2)
    with pytest.raises(ValueError, match="`t` is nan"):
        stream.push(NAN, [0.1, 0.2], sequence=2)
    assert stream.state is before and stream._events is kept
    assert stream.push(1.5, [0.1, 0.2], sequence=2).fate == "replayed"


def test_a_stream_goes_on_after_a_restart_with_its_late_events(online, tmp_path):
    policy = fd.ReplayLate(window=2.0)
    whole = fd.EventStream(online, online.init(0.0), policy)
    stream = fd.EventStream(online, online.init(0.0), policy)
    for i, (t, y, k, _) in enumerate(ARRIVING):
        arrival = whole.push(t, y, sequence=k)
        if i % 20 == 13:
            stream.save(tmp_path / "stream", position=i)
            stream, position = fd.EventStream.load(online, tmp_path / "stream", policy)
            assert position == i
            assert (
                stream.push(*ARRIVING[i - 1][:2], sequence=ARRIVING[i - 1][2]).fate == "duplicate"
            )
        again = stream.push(t, y, sequence=k)
        assert again.fate == arrival.fate
        same(again.results, arrival.results)
    same(stream.state, whole.state)
    assert stream.late_count == whole.late_count
    with pytest.raises(ValueError, match="its late is 'ReplayLate"):
        fd.EventStream.load(online, tmp_path / "stream", fd.DropLate())
    with pytest.raises(ValueError, match="it holds 'EventStream'; expected 'OnlineState'"):
        online.load(tmp_path / "stream")


def test_the_bytes_of_a_stream_are_those_of_its_file(online, tmp_path):
    stream = fd.EventStream(online, online.init(0.0), fd.ReplayLate(2.0))
    for t, y, number, _ in ARRIVING[:30]:
        stream.push(t, y, sequence=number)
    stream.save(tmp_path / "stream", position="30")
    content = stream.to_bytes(position="30")
    assert content == (tmp_path / "stream").read_bytes()
    resumed, position = fd.EventStream.from_bytes(online, content, fd.ReplayLate(2.0))
    assert position == "30"
    assert resumed.to_bytes(position="30") == content
    with pytest.raises(ValueError, match=r"checkpoint of \d+ bytes is refused: it begins with"):
        fd.EventStream.from_bytes(online, b"pickle", fd.ReplayLate(2.0))
    with pytest.raises(ValueError, match="more than `max_bytes` 9"):
        fd.EventStream.from_bytes(online, content, fd.ReplayLate(2.0), max_bytes=9)


def test_events_may_have_datetimes_of_any_zone(online):
    noon = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.UTC)
    east = noon.astimezone(datetime.timezone(datetime.timedelta(hours=2)))
    stream = fd.EventStream(online, online.init(noon), fd.ReplayLate(window=5.0))
    plain = fd.EventStream(online, online.init(noon.timestamp()), fd.ReplayLate(window=5.0))
    for after, fate in ((1.5, "new"), (3.0, "new"), (2.25, "replayed")):
        time = east + datetime.timedelta(seconds=after)
        assert stream.push(time, [after, NAN]).fate == fate
        plain.push(noon.timestamp() + after, [after, NAN])
    same(stream.state, plain.state)
    assert stream.state.time == noon.timestamp() + 3
    with pytest.raises(ValueError, match="without a time zone"):
        stream.push(noon.replace(tzinfo=None), [0.0, 0.0])


def test_settings_that_make_no_sense_are_refused(online):
    with pytest.raises(ValueError, match="`window` is 0"):
        fd.ReplayLate(window=0)
    with pytest.raises(ValueError, match="`capacity` is 0"):
        fd.ReplayLate(window=1.0, capacity=0)
    with pytest.raises(TypeError, match="`late` is str; expected DropLate"):
        fd.EventStream(online, online.init(0.0), "drop")
