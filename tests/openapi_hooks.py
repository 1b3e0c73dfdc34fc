"""What schemathesis can't know of the collector; it loads this by SCHEMATHESIS_HOOKS.

* It does not pack bodies, so it must not say that it did (tests/fuzz does both).
* A parameter that the interface does not name is ignored, as HTTP's habit is, and no mistake.
"""

from __future__ import annotations

from typing import Any

import schemathesis

__all__ = ["filter_case"]


@schemathesis.hook
def filter_case(context: schemathesis.HookContext, case: schemathesis.Case) -> bool:
    """Whether to send it."""
    headers: dict[str, Any] = dict(case.headers or {})
    encoding = {name.lower(): value for name, value in headers.items()}.get("content-encoding")
    return set(case.query or {}) <= {"ack"} and encoding in (None, "identity")
