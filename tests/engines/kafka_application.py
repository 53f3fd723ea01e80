"""A Quix Streams application, as a user would write one, but for the first function."""

import sys

import jax
import quixstreams
from quixstreams.models.topics.admin import TopicAdmin
from quixstreams.models.topics.topic import TopicConfig

from filterdyn.engines import kafka

CONFIG = {"retention.ms": "604800000", "retention.bytes": "-1", "cleanup.policy": "delete"}


def inspect_topics(admin, names, timeout=30):
    """librdkafka's mock cluster makes topics when they are asked for, and has no DescribeConfigs."""
    found = {
        name: admin.admin_client.list_topics(name, timeout=timeout).topics[name] for name in names
    }
    return {name: TopicConfig(len(topic.partitions), 1, CONFIG) for name, topic in found.items()}


def main(broker, folder, timeout):
    TopicAdmin.inspect_topics = inspect_topics
    jax.config.update("jax_enable_x64", True)
    app = quixstreams.Application(
        broker_address=broker,
        consumer_group="plant",
        auto_offset_reset="earliest",
        state_dir=folder,
        commit_every=7,
        consumer_extra_config={"session.timeout.ms": 6000},  # to be missed soon after its death
        loglevel="WARNING",
    )
    frame = kafka.follow(app.dataframe(app.topic("measurements")), "plant:online")
    frame.to_topic(app.topic("estimates"))
    app.run(timeout=timeout)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
