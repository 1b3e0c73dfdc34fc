"""What schemathesis can't know of the collector; it loads this by SCHEMATHESIS_HOOKS.

* It does not pack bodies, so it must not say that it did (tests/fuzz does both).
* A parameter that the interface does not name is ignored, as HTTP's habit is, and no mistake.
* Of several records the good ones are taken, with 2xx, and the others named: that is a refusal too.
"""

from __future__ import annotations

from typing import Any

import schemathesis
from schemathesis.specs.openapi.checks import negative_data_rejection

__all__ = ["filter_case", "mistakes_are_refused"]


@schemathesis.hook
def filter_case(context: schemathesis.HookContext, case: schemathesis.Case) -> bool:
    """Whether to send it."""
    headers: dict[str, Any] = dict(case.headers or {})
    encoding = {name.lower(): value for name, value in headers.items()}.get("content-encoding")
    return set(case.query or {}) <= {"ack"} and encoding in (None, "identity")


@schemathesis.check
def mistakes_are_refused(
    ctx: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> bool | None:
    """negative_data_rejection, which is to be left out, for requests of several records."""
    taken = case.operation.method.upper() == "POST" and response.status_code in (200, 202)
    if taken and response.json().get("refused"):
        return None
    return negative_data_rejection(ctx, response, case)
