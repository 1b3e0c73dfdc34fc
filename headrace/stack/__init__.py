"""The local stack: Apache Kafka and PostgreSQL as real servers, and a place for chDB.

No Docker, Java or Maven is needed, only wheels (the extra local) and one download of
Kafka's jars. Everything lives in one state directory and listens on 127.0.0.1 only.

    with Stack(tmp_path) as stack:          # up; gone afterwards, even when the test is killed
        print(stack.endpoints())

    stack = Stack(); stack.up()             # stays up after this process: `headrace up`

| module | holds |
|---|---|
| `model` | what callers see: endpoints, status, the one error |
| `stack` | `up`, `down`, `status`: both servers under one lock |
| `kafka`, `kafka_node`, `jars`, `warmstart` | Kafka: service, files and flags, jars, fast start |
| `postgres`, `unprivileged` | PostgreSQL: service, and what to do as root |
| `state`, `process`, `status`, `guard` | the directory, processes, their look, last resort |
| `pin` | writes `kafka-jars.txt`, by hand |
"""

from .model import Endpoints, Service, ServiceStatus, StackError, Status
from .stack import Stack

__all__ = ["Endpoints", "Service", "ServiceStatus", "Stack", "StackError", "Status"]
