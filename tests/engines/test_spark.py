"""Spark on this machine: an application that is killed in the middle of a batch."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("pyspark", reason="needs the extra spark")
from engines import plant
from engines.events import agrees, expected, messages

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("java") is None, reason="needs Java"),
]
HERE = Path(__file__).parent
FILES = 6
BEGIN = 1.7e9


def write_files(folder, events):
    """Each file is a batch: the rows of all keys without order, some of the one before again."""
    rng = np.random.default_rng(3)
    rows = [
        dict(
            machine=key,
            time=datetime.fromtimestamp(e["time"], UTC).isoformat(),
            a=e["y"][0],
            b=e["y"][1],
            force=e["u"][0],
            number=k,
        )
        for k, (key, e) in enumerate(events)
    ]
    size = len(rows) // FILES
    for k in range(FILES):
        part = rows[k * size : (k + 1) * size] + rows[max(k * size - 5, 0) : k * size]
        text = "".join(json.dumps(part[i]) + "\n" for i in rng.permutation(len(part)))
        path = folder / "in" / f"{k}.json"
        path.write_text(text)
        os.utime(path, (BEGIN + k, BEGIN + k))  # Spark takes the oldest file first


def start(folder, log):
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(HERE), str(HERE.parents[1])]))
    return subprocess.Popen(
        [sys.executable, str(HERE / "spark_application.py"), str(folder)],
        env=environment,
        stdout=log,
        stderr=log,
        start_new_session=True,  # with its JVM and its workers
    )


def test_a_killed_application_goes_on_and_every_row_comes_once(tmp_path):
    if not jax.config.jax_enable_x64:
        pytest.skip("compared in double precision")
    events = [
        (key, event | dict(time=round(BEGIN + event["time"], 3))) for key, event in messages(120)
    ]
    (tmp_path / "in").mkdir()
    write_files(tmp_path, events)
    with (tmp_path / "log").open("w") as log:
        application = start(tmp_path, log)
        end = time.monotonic() + 600
        while not (tmp_path / "checkpoints/offsets/2").exists() and time.monotonic() < end:
            assert application.poll() is None, (tmp_path / "log").read_text()[-4000:]
            time.sleep(0.01)
        os.killpg(application.pid, signal.SIGKILL)
        application.wait()
        assert not (tmp_path / "checkpoints/commits/2").exists()
        assert (tmp_path / "checkpoints/commits/1").exists()

        application = start(tmp_path, log)
        assert application.wait(timeout=600) == 0, (tmp_path / "log").read_text()[-4000:]

    rows = json.loads((tmp_path / "found.json").read_text())
    new = [row for row in rows if row["fate"] == "new"]
    again = [row for row in rows if row["fate"] == "duplicate"]
    assert (len(new), len(again)) == (len(events), 5 * (FILES - 1)) and len(rows) == len(new) + len(
        again
    )
    steps = expected(plant.online, events)
    assert {(row["machine"], row["time"]) for row in new} == {(k, e["time"]) for k, e in events}
    for row in new:
        assert agrees(row, steps[row["machine"]][row["time"]])
