"""A Spark application, as a user would write one: files of JSON in, files of JSON out."""

import os
import sys

from pyspark.sql import SparkSession

from filterdyn.engines import spark as engine

STORE = "org.apache.spark.sql.execution.streaming.state.RocksDBStateStoreProvider"
SCHEMA = "machine string, time timestamp, a double, b double, force double, number bigint"


def main(folder):
    os.environ["PYSPARK_PYTHON"] = sys.executable
    spark = (
        SparkSession.builder.master("local[1]")
        .config("spark.ui.enabled", False)
        .config("spark.driver.memory", "1g")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.sql.session.timeZone", "America/New_York")
        .config("spark.sql.shuffle.partitions", 1)
        .config("spark.sql.streaming.stateStore.providerClass", STORE)
        .getOrCreate()
    )
    rows = spark.readStream.schema(SCHEMA).option("maxFilesPerTrigger", 1).json(f"{folder}/in")
    estimates = engine.follow(
        rows,
        "plant:online",
        key="machine",
        observations=["a", "b"],
        inputs=["force"],
        sequence="number",
    )
    query = (
        estimates.writeStream.format("json")
        .option("checkpointLocation", f"{folder}/checkpoints")
        .trigger(availableNow=True)
        .start(f"{folder}/out")
    )
    query.awaitTermination()
    # (With the log of the sink: files that a dead application has left half done do not count.)
    spark.read.json(f"{folder}/out").toPandas().to_json(
        f"{folder}/found.json", orient="records", double_precision=15
    )


if __name__ == "__main__":
    main(sys.argv[1])
