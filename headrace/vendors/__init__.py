"""Six analytics vendors on loopback that behave as the real ones do, and break when told to.

They are an independent witness of what the forwarder sends: written from the vendors' documents,
held by the vendors' own SDKs, and without a line in common with consumers/vendors.

    `model`           what a stand-in is: calls in, judgements out, the clock an argument
    `ga4`             Google Analytics 4
    `amplitude`       HTTP V2 and Batch
    `heap`            track, single and bulk
    `mixpanel`        /import, and what its SDK uses
    `mixpanel_rules`  what /import refuses of an event
    `posthog`         /batch/
    `webhook`         a receiver that checks signatures
    `rates`           how much a user, device or project has sent over a rolling span
    `shelf`           what was stored, and what is known as a copy
    `faults`          how a vendor is broken on purpose, by seeded dice
    `place`           where each of them stands, and the time of all
    `app`             a request from its path to its answer
    `operator`        the operator's page and API
    `connections`     a TCP reset, for which ASGI has no word
    `server`          the process: granian on loopback
    `client`          for tests: that process, and how to talk to it
"""
