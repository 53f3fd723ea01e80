"""Quix Streams over Kafka's protocol: an application that is killed, and loses its disk too."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

pytest.importorskip("quixstreams", reason="needs the extra kafka")
from confluent_kafka import Consumer, Producer

from engines import plant
from engines.events import agrees, expected, messages

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent


@pytest.fixture
def cluster():
    """The cluster that librdkafka has built in: it lives as long as its producer."""
    producer = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "none"})
    brokers = producer.list_topics(timeout=20).brokers.values()
    for topic in ("measurements", "estimates"):
        producer.list_topics(topic, timeout=20)
    return producer, ",".join(f"{broker.host}:{broker.port}" for broker in brokers)


def start(broker, folder, timeout):
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(HERE), str(HERE.parents[1])]))
    return subprocess.Popen(
        [sys.executable, str(HERE / "kafka_application.py"), broker, str(folder), str(timeout)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def send(producer, events):
    for key, event in events:
        producer.produce("measurements", key=key, value=json.dumps(event))
    producer.flush()


class Estimates:
    """What has come out so far."""

    def __init__(self, broker):
        self.rows = []
        self._consumer = Consumer(
            {"bootstrap.servers": broker, "group.id": "test", "auto.offset.reset": "earliest"}
        )
        self._consumer.subscribe(["estimates"])

    def until(self, enough, seconds):
        end = time.monotonic() + seconds
        while not enough(self.rows) and time.monotonic() < end:
            message = self._consumer.poll(0.2)
            if message is not None and message.error() is None:
                self.rows.append((message.key().decode(), json.loads(message.value())))
        return enough(self.rows)

    def close(self):
        self._consumer.close()


def test_a_killed_application_loses_nothing_and_takes_nothing_twice(cluster, tmp_path):
    if not jax.config.jax_enable_x64:
        pytest.skip("compared in double precision")
    producer, broker = cluster
    events = list(messages(150))
    send(producer, events[:80])
    estimates = Estimates(broker)
    application = start(broker, tmp_path / "state", 600)
    came = estimates.until(lambda rows: len(rows) >= 79, 240)
    application.kill()
    assert came, application.communicate()[1].decode()[-3000:]
    application.communicate()
    # Its disk is gone too: the states are in the changelog topic.
    shutil.rmtree(tmp_path / "state")
    bad = ("pump", dict(time="noon", y=[0, 0]))
    send(producer, [bad, *events[80:110]])
    # Many at once, in a message for each key.
    for key in dict.fromkeys(key for key, _ in events[110:]):
        producer.produce(
            "measurements", key=key, value=json.dumps([e for k, e in events[110:] if k == key])
        )
    producer.flush()
    application = start(broker, tmp_path / "state", 600)
    new = lambda rows: {(key, row["time"]) for key, row in rows if row["fate"] == "new"}
    came = estimates.until(lambda rows: len(new(rows)) == len(events), 240)
    estimates.until(lambda rows: False, 2)
    application.terminate()
    _, err = application.communicate(timeout=60)
    estimates.close()
    assert came, err.decode()[-3000:]

    steps = expected(plant.online, events)
    fates = [row["fate"] for _, row in estimates.rows]
    assert set(fates) <= {"new", "refused", "duplicate"} and fates.count("refused") == 1
    # What was on its way when the application died comes again, as it was or as a duplicate.
    for key, row in estimates.rows:
        if row["fate"] == "new":
            assert agrees(row, steps[key][row["time"]])
