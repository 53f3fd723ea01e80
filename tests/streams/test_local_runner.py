"""A stream that one process after another keeps up: nothing twice, nothing lost."""

import asyncio
import datetime
import itertools
import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd
from filterdyn.streams import Event, JSONLines, LocalRunner, MalformedLine
from filterdyn.streams.named import online_filter

MODEL = fd.StateSpaceModel(
    dist.Normal(0.0, jnp.ones(2)).to_event(1),
    fd.LinearSDE([[0.0, 1.0], [-1.0, -0.3]], [[0.0], [0.5]], B=[[0.0], [1.0]]),
    fd.LinearObservation(np.eye(2), 0.1 * np.eye(2)),
)


@pytest.fixture(scope="module")
def online():
    return fd.OnlineFilter(MODEL, fd.KalmanFilter())


def make_events(count=60, seed=0):
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.uniform(0, 1, count))
    late = rng.permutation(count) < count // 5
    order = np.argsort(times + 1.5 * late)
    y = rng.normal(size=(count, 2))
    y[rng.random((count, 2)) < 0.2] = np.nan
    return [Event(times[k], y[k], rng.normal(size=1), int(k)) for k in order]


EVENTS = make_events()
POLICY = fd.ReplayLate(3.0)


def same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def close():
    return dict(rtol=1e-12, atol=1e-12) if jax.config.jax_enable_x64 else dict(rtol=1e-5, atol=1e-5)


def states(outcomes):
    return [outcome.state for outcome in outcomes]


@pytest.fixture(scope="module")
def uninterrupted(online, tmp_path_factory):
    with LocalRunner(online, tmp_path_factory.mktemp("whole"), POLICY) as runner:
        return list(runner.run(EVENTS))


def test_the_stream_is_that_of_the_filter(online, uninterrupted):
    stream = fd.EventStream(online, online.init(EVENTS[0].time), POLICY)
    fates = [stream.push(e.time, e.y, e.u, sequence=e.sequence).fate for e in EVENTS]
    assert [o.arrival.fate for o in uninterrupted] == fates
    assert {"new", "replayed"} <= set(fates)
    same(uninterrupted[-1].state, stream.state)


def test_a_runner_that_dies_anywhere_is_followed_by_one_that_goes_on_to_the_bit(
    online, uninterrupted, tmp_path
):
    rng, taken, deaths = random.Random(1), [], 0
    while len(taken) < len(EVENTS):
        runner = LocalRunner(online, tmp_path, POLICY, every=7)
        del taken[runner.count :]  # what comes again
        lives = rng.randrange(1, 16)
        for outcome in itertools.islice(runner.run(iter(EVENTS)), lives):
            taken.append(outcome)
        runner.close()  # (as the system does with the lock of a dead process)
        deaths += 1
    assert deaths > 5
    same(states(taken), states(uninterrupted))
    assert [o.event for o in taken] == EVENTS


@pytest.mark.slow
def test_a_filter_from_a_file_gives_the_same_and_goes_on_likewise(online, uninterrupted, tmp_path):
    fd.export(online, tmp_path / "plant", num_inputs=1, platforms=["cpu"])
    found = []
    for count in (31, len(EVENTS)):
        exported = online_filter("--model", str(tmp_path / "plant"))
        with LocalRunner(exported, tmp_path / "snapshots", POLICY) as runner:
            found.extend(runner.run(EVENTS[:count]))
    assert [o.arrival.fate for o in found] == [o.arrival.fate for o in uninterrupted]
    for ours, theirs in zip(found, uninterrupted, strict=True):
        np.testing.assert_allclose(ours.state.mean, theirs.state.mean, **close())
        np.testing.assert_allclose(ours.state.cov, theirs.state.cov, **close())
    # The snapshot is one of the model: its filter goes on from it.
    LocalRunner(online, tmp_path / "snapshots", POLICY).close()


def test_an_asynchronous_source_gives_the_same(online, uninterrupted, tmp_path):
    async def arriving():
        for event in EVENTS:
            await asyncio.sleep(0)
            yield event
            yield None

    async def follow(count):
        with LocalRunner(online, tmp_path, POLICY) as runner:
            found = []
            async for outcome in runner.run_async(arriving()):
                found.append(outcome)
                if len(found) == count:
                    break
            return found

    first = asyncio.run(follow(25))
    rest = asyncio.run(follow(len(EVENTS)))
    # The one that was in use when the first one ended was counted: it left in good order.
    assert len(first) + len(rest) == len(EVENTS)
    same(states([*first, *rest]), states(uninterrupted))


def test_a_source_that_can_seek_is_asked_for_what_follows(online, uninterrupted, tmp_path):
    asked = []

    def source(position):
        asked.append(position)
        begin = 0 if position is None else position["row"]
        for k, event in enumerate(EVENTS[begin : begin + 40], begin):
            yield event._replace(position={"row": k + 1})

    with LocalRunner(online, tmp_path, POLICY) as runner:
        first = list(runner.run(source))
    with LocalRunner(online, tmp_path, POLICY) as runner:
        rest = list(runner.run(source))
    assert asked == [None, {"row": 40}]
    same(states([*first, *rest]), states(uninterrupted))


def test_two_processes_cannot_share_a_folder(online, tmp_path):
    with LocalRunner(online, tmp_path) as runner:
        with pytest.raises(BlockingIOError, match="another process uses the folder"):
            LocalRunner(online, tmp_path)
        runner.push(EVENTS[0])
    LocalRunner(online, tmp_path).close()


def test_snapshots_of_other_settings_are_refused_and_the_folder_is_free_again(online, tmp_path):
    with LocalRunner(online, tmp_path, POLICY) as runner:
        runner.push(EVENTS[0])
    with pytest.raises(ValueError, match="its late is 'ReplayLate"):
        LocalRunner(online, tmp_path, fd.RejectLate())
    online.save(tmp_path / "stream", online.init(0.0))
    with pytest.raises(ValueError, match="it holds 'OnlineState'"):
        LocalRunner(online, tmp_path, POLICY)
    fd.EventStream(online, online.init(0.0), POLICY).save(tmp_path / "stream", position=3)
    with pytest.raises(ValueError, match="was not written by a LocalRunner"):
        LocalRunner(online, tmp_path, POLICY)
    with pytest.raises(ValueError, match="`seconds` is 0"):
        LocalRunner(online, tmp_path, seconds=0)


def test_an_event_that_is_refused_changes_nothing(online, tmp_path):
    with LocalRunner(online, tmp_path, t0=0.0) as runner:
        with pytest.raises(ValueError, match="`y` has shape"):
            runner.push(Event(1.0, [1.0]))
        assert runner.count == 0
        runner.skip(Event(1.0, [1.0], position=5))
    runner = LocalRunner(online, tmp_path)
    assert (runner.count, runner.position, runner.stream.state.time) == (1, 5, 0.0)
    runner.close()


def line(event):
    y = [None if np.isnan(v) else v for v in event.y]
    return json.dumps(dict(time=event.time, y=y, u=event.u.tolist(), seq=event.sequence)) + "\n"


def test_lines_of_json_are_the_events(online, uninterrupted, tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text("".join(map(line, EVENTS[:30])))
    with LocalRunner(online, tmp_path / "snapshots", POLICY) as runner:
        source = JSONLines(path)
        found = list(runner.run(source))
        assert source.resumed == "start"
    path.write_text("".join(map(line, EVENTS)).rstrip())
    for expected in ("same", "same"):
        with LocalRunner(online, tmp_path / "snapshots", POLICY) as runner:
            source = JSONLines(path)
            found.extend(runner.run(source))
            assert source.resumed == expected
    same(states(found), states(uninterrupted))


def test_another_input_is_taken_from_its_beginning_and_a_changed_one_refused(tmp_path):
    path = tmp_path / "events.jsonl"
    lines = [line(event) for event in EVENTS[:5]]
    path.write_text("".join(lines))
    position = list(e for e in JSONLines(path)() if e is not None)[3].position
    path.write_text("".join(lines[1:]))
    source = JSONLines(path)
    assert [e.sequence for e in source(position)] == [e.sequence for e in EVENTS[1:5]]
    assert source.resumed == "other"
    for changed in (lines[:3], [*lines[:3], lines[4]]):
        path.write_text("".join(changed))
        with pytest.raises(ValueError, match="its line 4 is another one or missing"):
            list(JSONLines(path)(position))


def test_a_file_that_grows_is_followed_and_one_that_is_replaced_begins_again(tmp_path):
    path, lines = tmp_path / "events.jsonl", [line(event) for event in EVENTS]
    path.write_text(lines[0] + lines[1][:9])
    events = JSONLines(path, follow=True)()
    assert next(events).sequence == EVENTS[0].sequence
    assert next(events) is None
    with path.open("a") as file:
        file.write(lines[1][9:])
    present = (e for e in events if e is not None)
    assert next(present).sequence == EVENTS[1].sequence
    path.with_name("new").write_text(lines[2])
    path.with_name("new").replace(path)
    again = next(present)
    assert (again.sequence, again.position["line"]) == (EVENTS[2].sequence, 1)
    path.write_text(line(Event(0.0, np.zeros(2), np.zeros(1), 7))[:30] + "]}\n")
    with pytest.raises(MalformedLine, match="line 1: "):
        next(present)


def test_times_have_zones_and_entries_have_names(tmp_path):
    def parse(text, **names):
        (tmp_path / "events").write_text(text)
        [event] = (e for e in JSONLines(tmp_path / "events", **names)() if e is not None)
        return event

    event = parse(
        '{"time": "2026-11-28T11:00:00.5+01:00", "y": {"b": 2, "a": null}, "u": 3}\n',
        observation_names=["a", "b", "c"],
    )
    assert event.time == datetime.datetime(2026, 11, 28, 10, 0, 0, 500_000, datetime.UTC)
    np.testing.assert_array_equal(event.y, [np.nan, 2.0, np.nan])
    np.testing.assert_array_equal(event.u, [3.0])
    assert parse('{"time": 1, "y": 2.5, "seq": 4}').sequence == 4
    assert parse('\n  \n{"time": 1, "y": null, "u": null}').position["line"] == 3


MALFORMED = {
    '{"time": 1, "y": [1': "no JSON",
    "[" * 100_000: "no JSON",
    "\xff": "no JSON",
    "[1, 2]": "expected {",
    '{"y": 1}': "no `time`",
    '{"time": 1}': "no `y`",
    '{"time": 1, "y": 1, "sequence": 2}': "a field `sequence`",
    '{"time": "noon", "y": 1}': "ISO 8601",
    '{"time": "2026-11-28T10:00:00", "y": 1}': "without a time zone",
    '{"time": true, "y": 1}': "expected a number",
    '{"time": NaN, "y": 1}': "a finite number",
    '{"time": 1, "y": [1e999]}': "a finite number",
    '{"time": 1, "y": [' + "9" * 400 + "]}": "a finite number",
    '{"time": 1, "y": ["2"]}': "expected a number",
    '{"time": 1, "y": {"a": 1}}': "no `observation_names`",
    '{"time": 1, "y": 1, "u": [null]}': "expected a number",
    '{"time": 1, "y": 1, "seq": 1.5}': "a whole number",
    '{"time": 1, "y": 1, "seq": 9223372036854775807}': "a whole number",
    '{"time": 1, "y": "' + "x" * 2000 + '"}': "more than `max_line`",
}


@pytest.mark.parametrize("text", MALFORMED, ids=lambda text: MALFORMED[text])
def test_a_malformed_line_is_named_by_its_number(text, tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"time": 0, "y": 0}\n' + text + "\n", encoding="latin-1")
    limit = 1000 if "max_line" in MALFORMED[text] else 2**20
    with pytest.raises(MalformedLine, match=f"line 2: .*{MALFORMED[text]}") as caught:
        list(JSONLines(path, max_line=limit)())
    assert caught.value.line == 2
    assert len(str(caught.value)) < 300


def test_names_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="`observation_names` is 'ab'"):
        JSONLines("x", observation_names="ab")
    with pytest.raises(ValueError, match=r"`input_names` is .*expected a list of different names"):
        JSONLines("x", input_names=["a", "a"])
    with pytest.raises(ValueError, match="`follow` is for a file"):
        JSONLines("-", follow=True)
