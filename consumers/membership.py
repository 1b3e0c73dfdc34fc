"""Whether a member of a group has lost touch without knowing it, and has to join anew.

Two ways of that are librdkafka's (2.16.1), and both are for good:

Unheard. With `group.protocol=consumer` the coordinator says once what a member's partitions are, in
its answer to a heartbeat, and again only when they change. librdkafka gives a heartbeat up after
one heartbeat interval, and does not ask for everything with the next one, as it does when the
connection breaks and as Kafka's own client always does. So an answer that takes longer, from a
broker that stood still for some seconds, is lost with what it said:
- of partitions that it gave us nobody reads a record: Kafka hears us, and waits
- what it wants back we keep, and nobody else gets, until max.poll.interval.ms has passed
What Kafka believes could be asked, but DescribeConsumerGroups ends the process when its connection
breaks (librdkafka 4605, 5397).

Alone. A cluster of which all brokers have just been away answers for a moment that there are none,
and librdkafka forgets those that it knew, and where it began (5301).

And what is final for librdkafka need not be for us: a coordinator that was killed and has just come
back (Kafka 4.2) may not know the group, which is made known by who joins it anew.
"""

from __future__ import annotations

import json

__all__ = ["EVERY_S", "Membership"]

# How often librdkafka is to give its statistics, in seconds.
EVERY_S = 3.0


_UNHEARD = "Kafka did not answer a heartbeat in time"


class Membership:
    """Of one member, from its joining on, by librdkafka's statistics.

    `said_once`: whether the group's protocol is the one of which it says so above.
    """

    def __init__(self, *, said_once: bool) -> None:
        self._said_once = said_once
        self._given_up = self._answers = 0
        self._missed = self._alone = False
        # Why it has to join anew; "" while it need not.
        self.trouble = ""

    def told(self, statistics: str) -> None:
        """For `stats_cb`."""
        brokers = json.loads(statistics)["brokers"]
        alone = all(broker["source"] == "logical" for broker in brokers.values())
        if alone and self._alone:
            self.trouble = "Kafka's client knows of no broker any more"
        self._alone = alone
        coordinator = brokers.get("GroupCoordinator")
        if coordinator is None or not self._said_once:
            return
        given_up, answers = coordinator["req_timeouts"], coordinator["rx"]
        if given_up > self._given_up:
            self._missed = True
        elif answers > self._answers and self._missed:
            # It answers again, so it will be heard.
            self.trouble = _UNHEARD
        self._given_up, self._answers = given_up, answers

    def ended(self, why: str) -> None:
        """Its client can't go on."""
        self.trouble = why

    def fenced(self) -> None:
        """Kafka has put us out: librdkafka joins anew by itself, if it can go on at all."""
        self._missed = False
        if self.trouble == _UNHEARD:
            self.trouble = ""
