"""Everything up to Kafka: what a stream is, its messages, and how they are published."""
