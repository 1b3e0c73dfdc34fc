"""Everything after Kafka: the run loop, the sinks, dead letters."""
