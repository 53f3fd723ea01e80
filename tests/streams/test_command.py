"""`filterdyn stream`, as a person would use it: piped into, killed, and started again."""

import json
import os
import random
import select
import signal
import subprocess
import sys
import textwrap
import time

import jax
import numpy as np
import pytest

import filterdyn as fd
from filterdyn.streams.command import main

COMMAND = (sys.executable, "-m", "filterdyn", "stream", "--model", "plant:online")
PLANT = """
    import jax.numpy as jnp
    import numpyro.distributions as dist
    import filterdyn as fd

    print("a module that says hello")
    model = fd.StateSpaceModel(
        dist.Normal(0.0, jnp.ones(2)).to_event(1),
        fd.LinearSDE([[0.0, 1.0], [-1.0, -0.3]], [[0.0], [0.5]]),
        fd.LinearObservation([[1.0, 0.0]], [[0.1]]),
    )
    pair = (model, fd.KalmanFilter())
    number = 3

    online = fd.OnlineFilter(*pair)

    def the_same():
        return online
"""


def lines(count, seed=0):
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.uniform(0, 1, count))
    rows = ({"time": t, "y": [v]} for t, v in zip(times, rng.normal(size=count), strict=True))
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("plant")
    (path / "plant.py").write_text(textwrap.dedent(PLANT))
    (path / "events.jsonl").write_text(lines(400))
    return path


@pytest.fixture
def call(folder, monkeypatch, capfdbinary):
    """The command in this process."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    x64 = jax.config.jax_enable_x64

    def run(checkpoint, *options, model="plant:online"):
        given = ["stream", "--model", model, "--checkpoint", str(checkpoint), *map(str, options)]
        status = main(given)
        out, err = capfdbinary.readouterr()
        return status, out, err.decode()

    yield run
    jax.config.update("jax_enable_x64", x64)


def start(folder, checkpoint, *options, **streams):
    """The command in a process of its own."""
    return subprocess.Popen(
        [*COMMAND, "--checkpoint", str(checkpoint), *map(str, options)],
        cwd=folder,
        stderr=subprocess.PIPE,
        **streams,
    )


def test_every_line_is_the_step_of_the_filter(call, tmp_path):
    status, out, err = call(tmp_path, "--input", "events.jsonl")
    assert status == 0
    assert "400 events, 0 lines passed over" in err and "hello" in err
    import plant

    online = plant.online
    given = [json.loads(text) for text in lines(400).splitlines()]
    state = online.init(given[0]["time"])
    for number, (event, text) in enumerate(zip(given, out.splitlines(), strict=True), 1):
        state, step = online.step(state, event["time"], event["y"])
        found = json.loads(text)
        assert (found["line"], found["time"], found["fate"]) == (number, event["time"], "new")
        assert found["mean"] == step.mean.tolist()
        assert found["sd"] == np.sqrt(np.diagonal(step.cov)).tolist()
        assert found["innovation"] == step.innovation.tolist()
        assert found["nis"] == step.nis and found["log_likelihood"] == step.log_likelihood
        assert found["status"] == "OK"


def test_late_repeated_and_missing_events_are_said_to_be_so(call, tmp_path):
    events = (
        '{"time": "2026-11-28T10:00:00Z", "y": {"position": 1}, "seq": 1}\n'
        '{"time": "2026-11-28T10:00:03Z", "y": [null], "seq": 3}\n'
        '{"time": "2026-11-28T10:00:02Z", "y": 0.5, "seq": 2}\n'
        '{"time": "2026-11-28T10:00:03Z", "y": 0.5, "seq": 3}\n'
        '{"time": "2026-11-28T09:00:00Z", "y": 0.5, "seq": 0}\n'
    )
    (tmp_path / "events").write_text(events)
    options = ("--input", tmp_path / "events", "--names", "position")
    _, out, err = call(tmp_path / "a", *options, "--late", "replay:2")
    found = [json.loads(text) for text in out.splitlines()]
    assert [f["fate"] for f in found] == ["new", "new", "replayed", "duplicate", "late"]
    assert found[1]["innovation"] == [None] and found[1]["nis"] is None
    assert found[2]["latest"]["time"] > 1e9 and found[2]["latest"]["mean"] != found[2]["mean"]
    assert found[4] == dict(line=5, seq=0, time="2026-11-28T09:00:00+00:00", fate="late")
    assert "not used: 1 late, 1 repeated" in err
    status, out, err = call(tmp_path / "b", *options, "--late", "reject")
    assert status == 1 and len(out.splitlines()) == 2
    assert "line 3: EventStream.push: `t` is " in err


def test_a_malformed_line_stops_the_stream_or_is_passed_over(call, tmp_path):
    path = tmp_path / "events"
    path.write_text(lines(3) + "oops\n" + '{"time": 9, "y": [1, 2]}\n' + lines(3, seed=1))
    good = len((lines(3) + lines(3, seed=1)).splitlines())
    status, out, err = call(tmp_path / "a", "--input", path)
    assert status == 1 and len(out.splitlines()) == 3
    assert "filterdyn stream: line 4: this is no JSON" in err and "Traceback" not in err
    # What came before it is in the snapshot.
    status, rest, err = call(tmp_path / "a", "--input", path, "--skip-malformed", "--quiet")
    assert status == 0
    assert "passed over: line 4: this is no JSON" in err
    assert "passed over: line 5: " in err and "`y` has shape" in err
    whole = call(tmp_path / "b", "--input", path, "--skip-malformed")[1]
    assert out + rest == whole and len(whole.splitlines()) == good


def test_an_output_that_is_not_its_own_is_left_alone(call, tmp_path):
    output = tmp_path / "out"
    output.write_text("the results of a year\n")
    options = ("--input", "events.jsonl", "--output", output)
    status, _, err = call(tmp_path / "a", *options)
    assert status == 1 and "is there already, with 22 bytes" in err
    assert output.read_text() == "the results of a year\n"
    output.unlink()
    assert call(tmp_path / "a", *options)[0] == 0
    output.write_bytes(output.read_bytes()[:-1])
    status, _, err = call(tmp_path / "a", *options)
    assert status == 1 and "bytes; it had" in err


def test_objects_that_are_no_filter_are_refused(call, tmp_path):
    for model, message in {
        "plant": "expected MODULE:OBJECT",
        "plant:number": "is int; expected an OnlineFilter",
        "plant:model": "is a model alone",
        "plant:nothing": "has no attribute 'nothing'",
        "no_such_plant:online": "No module named",
    }.items():
        status, out, err = call(tmp_path, "--input", "events.jsonl", model=model)
        assert status == 1 and message in err and not out, model
    whole = call(tmp_path / "a", "--input", "events.jsonl", model="plant:the_same")[1]
    options = ("--input", "events.jsonl", "--filter", "KalmanFilter")
    assert call(tmp_path / "b", *options, model="plant:model")[1] == whole != b""


def test_help_shows_the_options_and_a_line_in_and_out(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["stream", "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for word in (
        "--model",
        "--checkpoint",
        "--late",
        "--output",
        "SIGTERM",
        '"seq": 17',
        "replayed",
    ):
        assert word in shown
    with pytest.raises(SystemExit):
        main(["--version"])
    assert fd.__version__ in capsys.readouterr().out
    given = ["stream", "--model", "a:b", "--checkpoint", "c"]
    for option, value, message in (
        ("--late", "sometimes", "expected drop, reject or replay:SECONDS"),
        ("--late", "replay:-1", "expected drop, reject or replay:SECONDS"),
        ("--t0", "yesterday", "expected a number or ISO 8601"),
        ("--u0", "1,b", "expected numbers with commas"),
    ):
        with pytest.raises(SystemExit) as caught:
            main([*given, option, value])
        assert caught.value.code == 2
        assert message in capsys.readouterr().err


def test_sigterm_makes_a_last_snapshot_and_a_pipe_that_goes_on_is_taken_on(call, folder, tmp_path):
    first, rest = lines(400)[:9000].rpartition("\n")[0] + "\n", ""
    rest = lines(400)[len(first) :]
    process = start(folder, tmp_path / "a", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdin.write(first.encode())
    process.stdin.flush()
    out = b"".join(process.stdout.readline() for _ in first.splitlines())
    process.send_signal(signal.SIGTERM)  # while it waits for more
    more, err = process.communicate(timeout=60)
    assert process.returncode == 0 and more == b""
    assert f"{len(first.splitlines())} events".encode() in err
    # A new pipe with what came in the meantime ...
    (tmp_path / "rest").write_text(rest)
    status, later, err = call(tmp_path / "a", "--input", tmp_path / "rest")
    assert status == 0 and "it was taken as a new one" in err
    whole = call(tmp_path / "b", "--input", "events.jsonl")[1]
    without_number = lambda text: [line.partition(b", ")[2] for line in text.splitlines()]
    assert without_number(out + later) == without_number(whole)


#: Imports once, and then forks a process for each call of the command.
FORKING = """
import json, os, sys
from filterdyn.streams.command import main

for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        os._exit(main(json.loads(line)))
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def killed(parent, arguments, output, rng, expected):
    """Kill -9 at a random place in the output; was there still something to kill?"""
    size = lambda: output.stat().st_size if output.exists() else 0
    target = size() + rng.randrange(1, len(expected) // 12)
    parent.stdin.write(json.dumps([*map(str, arguments)]) + "\n")
    parent.stdin.flush()
    pid, begun = int(parent.stdout.readline()), time.monotonic()
    while size() <= target and time.monotonic() - begun < 60:
        if select.select([parent.stdout], [], [], 0.0002)[0]:
            break
    else:
        os.kill(pid, signal.SIGKILL)
    return int(parent.stdout.readline()) == -signal.SIGKILL


def outlives(call, folder, tmp_path, kills, count):
    (tmp_path / "events").write_text(lines(count))
    expected = call(tmp_path / "whole", "--input", tmp_path / "events")[1]
    output = tmp_path / "out"
    options = ("--input", tmp_path / "events", "--output", output, "--every", 50)
    arguments = ("stream", "--model", "plant:online", "--checkpoint", tmp_path / "a", *options)
    rng, done = random.Random(0), 0
    with subprocess.Popen(
        [sys.executable, "-c", FORKING],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as parent:
        for _ in range(kills):
            done += killed(parent, arguments, output, rng, expected)
        parent.stdin.close()
    assert done >= kills / 2
    assert call(tmp_path / "a", *options)[0] == 0
    assert output.read_bytes() == expected


def test_an_output_is_the_same_to_the_byte_after_kill_9(call, folder, tmp_path):
    outlives(call, folder, tmp_path, 2, 3000)


@pytest.mark.slow
def test_an_output_is_the_same_to_the_byte_after_twenty_kills(call, folder, tmp_path):
    outlives(call, folder, tmp_path, 20, 12000)
