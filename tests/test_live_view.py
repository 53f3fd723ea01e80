"""The live view shows a stream, to this machine only, and does not hold it up."""

import http.client
import json
import os
import threading
import time
from datetime import UTC, datetime
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd
from tests.browser import Browser, installed


def step(i, *, missing=False, alarm="", raised=0.0, parameters=None, status=0):
    """What a filter of two states and one sensor might say of row i."""
    nan = float("nan")
    return SimpleNamespace(
        mean=np.array([np.sin(0.1 * i), np.cos(0.1 * i)]) if status == 0 else np.full(2, nan),
        cov=np.diag([0.04, 0.09]),
        innovation=np.array([nan if missing else 0.3 * np.sin(i)]),
        innovation_cov=np.array([[0.09]]),
        nis=nan if missing else np.sin(i) ** 2,
        status=status,
        parameters=parameters,
        alarm=SimpleNamespace(in_words=alarm, rows=4.0, raised=raised),
    )


def ask(view, path, host=None, method="GET"):
    port = int(view.url.rsplit(":", 1)[1].strip("/"))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, headers={"Host": host or f"127.0.0.1:{port}"})
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer, body


def rows(view, after=0):
    return json.loads(ask(view, f"/rows?after={after}")[1])


def test_rows_are_given_once_as_numbers_and_what_is_missing_as_null():
    with fd.plots.live(names=["x", "v"], rows=3) as view:
        for i in range(5):
            view.update(float(i), step(i, missing=i == 4), [float(i) if i < 4 else np.nan])
        found = rows(view)
        assert [row["n"] for row in found["found"]] == [3, 4, 5] and found["names"] == ["x", "v"]
        last = found["found"][-1]
        assert last["e"] == [None] and last["nis"] is None and last["y"] == [None]
        assert last["half"][1] == pytest.approx(1.6448536 * 0.3)
        assert found["found"][0]["e"][0] == pytest.approx(np.sin(2))
        assert rows(view, after=5)["found"] == []
        view.update(datetime(2026, 1, 1, tzinfo=UTC), step(5, status=1))
        view.update(np.datetime64("2026-01-01"), step(6))
        failed, dated = rows(view, after=5)["found"]
        assert failed["mean"] == [None, None] and failed["status"] == "MODEL_NOT_FINITE"
        assert failed["t"] == dated["t"] == 1767225600.0


def test_what_was_learnt_is_sent_with_its_interval():
    model = fd.ParametricModel(
        lambda p: fd.StateSpaceModel(
            dist.Normal(jnp.zeros(1), 1.0).to_event(1),
            fd.LinearTransition(p["rate"] * jnp.eye(1), jnp.eye(1)),
            fd.LinearObservation(jnp.eye(1), R=1.0),
        ),
        prior=dict(rate=dist.LogNormal(0.0, 0.5)),
    )
    with fd.plots.live(probability=0.95) as view:
        view.update(0.0, step(0, parameters=model.prior_estimate()))
        (row,) = rows(view)["found"]
    expected = np.exp(np.array([0.0, -1, 1]) * 0.5 * 1.959964)
    np.testing.assert_allclose(row["parameters"]["rate"], expected, rtol=1e-5)


def test_the_page_is_for_this_machine_only():
    with fd.plots.live() as view:
        assert view.url.startswith("http://127.0.0.1:")
        port = view.url.rsplit(":", 1)[1].strip("/")
        answer, page = ask(view, "/")
        assert answer.status == 200 and "http-equiv" not in page
        # Nothing is loaded from elsewhere (the one address is the name of SVG).
        assert page.count("://") == 1 and "http://www.w3.org/2000/svg" in page
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "connect-src 'self'" in policy
        assert ask(view, "/", host=f"localhost:{port}")[0].status == 200
        for host in (
            "evil.example",
            f"evil.example:{port}",
            "127.0.0.1",
            f"127.0.0.1:{port}.evil.example",
        ):
            assert ask(view, "/rows", host=host)[0].status == 403
        assert ask(view, "/rows?after=x")[0].status == 400
        assert ask(view, "/rows?after=%2d1")[0].status == 400
        assert ask(view, "/../etc/passwd")[0].status == 404
        assert ask(view, "/", method="POST")[0].status == 501


def test_many_look_on_while_rows_come_and_each_sees_all_of_them():
    seen, errors = [], []

    def look(view, until):
        try:
            mine, after = [], 0
            while after < until:
                for row in rows(view, after)["found"]:
                    mine.append(row["n"])
                    after = row["n"]
            seen.append(mine)
        except Exception as error:
            errors.append(error)

    with fd.plots.live(rows=2000) as view:
        threads = [threading.Thread(target=look, args=(view, 1000)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for i in range(1000):
            view.update(float(i), step(i))
        for thread in threads:
            thread.join(60)
    assert not errors and seen == [list(range(1, 1001))] * 6


def test_a_row_costs_the_stream_next_to_nothing_and_memory_is_bounded():
    with fd.plots.live(rows=50) as view:
        one = step(0)
        best = min(_seconds(lambda: view.update(0.0, one), 2000) for _ in range(5))
        assert len(view._rows) == 50
    assert best < 50e-6


def _seconds(call, repeats):
    start = time.thread_time()
    for _ in range(repeats):
        call()
    return (time.thread_time() - start) / repeats


def test_a_closed_view_takes_no_rows_and_its_port_is_free_again():
    view = fd.plots.live()
    port = int(view.url.rsplit(":", 1)[1].strip("/"))
    before = threading.active_count()
    view.close()
    view.close()
    assert threading.active_count() < before and "closed" in repr(view)
    with pytest.raises(ValueError, match="closed"):
        view.update(0.0, step(0))
    with fd.plots.live(port=port) as again:
        assert again.url == view.url
        with pytest.raises(OSError):
            fd.plots.live(port=port)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (dict(rows=0), "`rows`"),
        (dict(port=-1), "`port`"),
        (dict(port=70_000), "`port`"),
        (dict(probability=1.0), "`probability`"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        fd.plots.live(**options)


@pytest.mark.slow
@pytest.mark.skipif(installed() is None, reason="there is no Chromium on this machine")
def test_a_browser_draws_the_stream_as_it_runs(tmp_path):
    space = fd.ParameterSpace.of("test", dict(stiffness=dist.LogNormal(0.0, 1.0)))
    learnt = fd.ParameterEstimate(space, jnp.array([0.7]), jnp.array([[0.01]]))
    view = fd.plots.live(names=["position", "<b>velocity</b>"], observation_names=["position"])
    browser = Browser(tmp_path / "profile")
    try:
        browser("Page.navigate", url=view.url)
        browser.wait("document.getElementById('state')?.textContent.includes('waiting')")
        for i in range(60):
            parameters = learnt if i % 2 else None
            view.update(0.2 * i, step(i, missing=i == 30, parameters=parameters), [np.sin(0.1 * i)])
        browser.wait("document.getElementById('state').textContent === 'row 60, time 11.8'")
        captions = "[...document.querySelectorAll('figcaption span')].map((x) => x.textContent)"
        # (A name is text, whatever is in it.)
        assert browser.run(captions) == ["position", "<b>velocity</b>", "stiffness", "position"]
        lines = "[...document.querySelectorAll('#states svg')].map((s) => s.querySelectorAll('%s').length)"
        assert browser.run(lines % ".band") == browser.run(lines % ".line") == [1, 1]
        assert browser.run(lines % ".data") == [60, 0]
        dots = "document.querySelectorAll('#innovations circle').length"
        assert browser.run(dots) == 59  # all but the missing one
        points = "document.querySelector('#states .line').getAttribute('points').split(' ')"
        drawn = np.array([[float(x) for x in p.split(",")] for p in browser.run(points)])
        # The line is the mean, up to the scale of the panel, which goes downwards.
        assert np.corrcoef(drawn[:, 1], -np.sin(0.1 * np.arange(60)))[0, 1] > 0.9999
        assert np.all(np.diff(drawn[:, 0]) > 0)
        assert browser.run("document.getElementById('s-alarms').hidden")
        view.update(12.0, step(60, raised=1.0))
        browser.wait("document.getElementById('evidence').textContent.includes('not decided')")
        view.update(12.2, step(61, alarm="noise of sensor 0: 5 times as large"))
        browser.wait("document.querySelectorAll('#alarms li').length === 1")
        said = browser.run("document.querySelector('#alarms li').textContent")
        assert said == "12.2: noise of sensor 0: 5 times as large (4 rows ago)"
        assert browser.run("document.querySelectorAll('line.alarm').length") == 4
        title = browser.run("document.querySelector('#parameters title').textContent")
        assert title.startswith("stiffness: now 2.014, 1.708 to 2.374")
        if "FILTERDYN_PICTURES" in os.environ:
            folder = tmp_path.__class__(os.environ["FILTERDYN_PICTURES"])
            for scheme in ("light", "dark"):
                feature = [dict(name="prefers-color-scheme", value=scheme)]
                browser("Emulation.setEmulatedMedia", features=feature)
                browser.picture(folder / f"live-{scheme}.png")
        view.close()
        browser.wait("document.getElementById('state').textContent.includes('has ended')")
        asked = [
            e["params"]["request"]["url"]
            for e in browser.events
            if e.get("method") == "Network.requestWillBeSent"
        ]
        assert asked and all(url.startswith(view.url) for url in asked)
        errors = [e for e in browser.events if e.get("method") == "Runtime.exceptionThrown"]
        assert not errors
    finally:
        view.close()
        browser.close()
