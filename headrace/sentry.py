"""What vendors answer that is no yes, to Sentry as well, where SENTRY_DSN is set.

A handler of the log in consumers/forward/tell.py: an event of Sentry's is one of its records, which
hold no credentials and went through the scrubber, and nothing else. The SDK is a client of its own
and not set up for the process, so it has no integrations, breadcrumbs, traces or local variables.

Of one vendor and status, which Sentry shows as one issue, the first record goes at once, then one
in EVERY_S with how many there were since. The SDK sends from a thread of its own and drops what its
queue has no room for: a Sentry that is away holds up nothing.
"""

from __future__ import annotations

import logging
from importlib.metadata import version
from urllib.parse import urlsplit

from consumers.forward import tell
from consumers.vendors import VendorError
from consumers.vendors.settings import base_url
from headrace.config import ConfigError
from ingest.extras import missing

__all__ = ["EVERY_S", "Sentry", "attach"]

# Between two events of one vendor and status, in seconds.
EVERY_S = 60.0
# At the end so long is waited for what is still to be sent.
_CLOSE_S = 2.0


def attach(dsn: str | None) -> None:
    """From now on tell Sentry too, if there is a DSN. Raises ConfigError."""
    if dsn:
        tell.log.addHandler(Sentry(dsn))


class Sentry(logging.Handler):
    """Raises ConfigError where the SDK is missing or the DSN can't be used. `close` waits."""

    def __init__(self, dsn: str) -> None:
        super().__init__()
        try:
            import sentry_sdk
            from sentry_sdk.utils import BadDsn
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"SENTRY_DSN is set and {missing(error.name, 'sentry')}. Or take SENTRY_DSN out of "
                "the environment"
            ) from error
        try:
            # What is told of requests is for no network to read, either; without the key in it.
            parts = urlsplit(dsn)
            base_url("SENTRY_DSN", parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl())
            # Nothing is collected by itself; send_default_pii is off unless it is turned on.
            self._client = sentry_sdk.Client(
                dsn,
                release=f"headrace@{version('headrace')}",
                default_integrations=False,
                auto_enabling_integrations=False,
                max_breadcrumbs=0,
                auto_session_tracking=False,
                include_local_variables=False,
                include_source_context=False,
                max_request_body_size="never",
            )
        except (ValueError, VendorError, BadDsn) as error:
            raise ConfigError(f"SENTRY_DSN is no DSN that can be used: {error}") from None
        # When it was last told of a vendor and status, and of how many it was not told since.
        self._told: dict[tuple[str, str], tuple[float, int]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Called in turn, by whatever thread logs."""
        try:
            self._tell(record)
        except Exception:
            self.handleError(record)

    def _tell(self, record: logging.LogRecord) -> None:
        said = record.__dict__
        vendor, status = key = said["vendor"], said["status"]
        at, untold = self._told.get(key, (-EVERY_S, 0))
        if record.created - at < EVERY_S:
            self._told[key] = at, untold + 1
            return
        self._told[key] = record.created, 0
        answer = {name: said[name] for name in ("attempt", "events", "request", "response")}
        self._client.capture_event(
            {
                "level": "warning",
                "logger": record.name,
                "message": record.getMessage(),
                "fingerprint": ["answer", vendor, status],
                "tags": {"vendor": vendor, "status": status},
                "contexts": {"answer": answer | {"more_since_the_last": untold}},
            }
        )

    def close(self) -> None:
        """Send what waits, for a while; `logging` calls it at the end of the process."""
        self._client.close(timeout=_CLOSE_S)
        super().close()
