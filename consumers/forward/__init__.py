"""From raw events to a vendor: what may leave, sent until the answer is final, with a receipt.

A vendor is a destination of the run loop. Its sink (`sink.py`) judges a batch at the gate, gives
the events to the engine, and the batch is done once there is a receipt for each event in Kafka.

The engine (`engine.py`) does all I/O and decides nothing: what may be sent now is `lines.py`, how
much at once and how fast is `pace.py`, whether at all is `breaker.py`, and what an answer means is
the vendor's `verdict`. Those three are told the time, so that they are tested without a clock.
"""
