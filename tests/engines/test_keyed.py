"""What all engines rely on: states as bytes, repeated batches, keys that do not disturb each other."""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd
from engines import plant
from engines.events import agrees, expected, messages
from filterdyn.engines import KeyedFilter
from filterdyn.streams import Event

EVENTS = list(messages(60))


def batches(size):
    """Batches of events of one key, each with its position."""
    for begin in range(0, len(EVENTS), size):
        found = {}
        for key, e in EVENTS[begin : begin + size]:
            event = Event(e["time"], np.array(e["y"], float), e["u"])
            found.setdefault(key, []).append(event)
        for key, events in found.items():
            yield begin, key, events


def run(keyed, size, repeat=False, fresh=lambda keyed: keyed):
    contents, rows = {}, {}
    for position, key, events in batches(size):
        keyed = fresh(keyed)
        content, new = keyed.advance(key, contents.get(key), events, position=position, source="p")
        if repeat:
            again, rest = keyed.advance(key, content, events, position=position, source="p")
            assert again == content and [r["fate"] for r in rest] == ["duplicate"] * len(events)
        contents[key] = content
        rows.setdefault(key, []).extend(new)
    return contents, rows


@pytest.fixture(scope="module")
def once():
    return run(KeyedFilter(plant.online), 12)


def test_every_row_is_the_step_of_the_filter(once):
    if not plant.online.model.dtype() == np.float64:
        pytest.skip("compared in double precision")
    steps = expected(plant.online, EVENTS)
    assert set(once[1]) == set(steps) and len(steps) == 3
    for key, rows in once[1].items():
        assert [row["time"] for row in rows] == list(steps[key])
        assert all(agrees(row, steps[key][row["time"]]) for row in rows)


def test_batches_of_any_size_delivered_twice_to_any_worker_give_the_same(once):
    for size in (1, 7):
        rows = run(KeyedFilter(plant.online), size)[1]
        assert rows == once[1]
    assert run(KeyedFilter(plant.online, cache=1), 12, repeat=True) == once
    assert run(None, 12, fresh=lambda _: KeyedFilter(plant.online)) == once


def test_what_is_refused_is_told_and_changes_nothing(once):
    keyed = KeyedFilter(plant.online)
    good = Event(1.0, [0.1, 0.2], [0.0])
    bad = [
        Event(0.5, [1.0], [0.0]),
        ValueError("no event"),
        Event(np.nan, [1.0, 1.0]),
        Event(1.5, [np.inf, 0.0]),
    ]
    assert keyed.advance("a", None, bad)[0] is None
    content, rows = keyed.advance("a", None, [bad[0], good, *bad[1:]], position=0)
    assert [r["fate"] for r in rows] == ["refused", "new", "refused", "refused", "refused"]
    assert "`y` has shape" in rows[0]["error"] and rows[2]["error"] == "no event"
    assert keyed.advance("b", None, [good], position=0)[0] == content
    with pytest.raises(ValueError, match="is refused: "):
        keyed.advance("a", content[:-1] + b"?", [good])


@pytest.mark.slow
def test_keys_draw_numbers_of_their_own():
    model = fd.StateSpaceModel(
        dist.Normal(0.0, jnp.ones(1)).to_event(1),
        fd.LinearTransition(jnp.eye(1), jnp.eye(1)),
        fd.LinearObservation(jnp.eye(1), jnp.eye(1)),
    )
    keyed = KeyedFilter(fd.OnlineFilter(model, fd.ParticleFilter(8)), seed=3)
    one, other, same = (
        keyed.advance(name, None, [Event(0.0, 0.3), Event(1.0, 0.1)])[1] for name in ("a", "b", "a")
    )
    assert one == same and one != other
