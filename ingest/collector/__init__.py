"""The collector: a small process in front of Kafka whose acknowledgement is a promise.

    door      what came in, judged record by record: pure functions, bytes in, records out
    spool     what was good is on disk before the answer goes out, many requests to one fsync
    relay     from there to Kafka exactly once (ingest/spool)

Rules:

* 202 is said after the fsync, or with `?ack=kafka` after the Kafka transaction, and never else.
* What is refused is refused with its index and its reason; the others of the request go on.
* A product event is kept byte for byte; nothing here changes a payload.
* What is in flight is bounded. When there is no room the answer is 503 with Retry-After.
* No log line holds anything that was in a key or a payload.
"""
