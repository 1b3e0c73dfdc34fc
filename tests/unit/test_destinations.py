"""What names a destination, and what is said of what does not."""

from __future__ import annotations

import pytest

from consumers.destinations import destination
from consumers.errors import Systemic


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgress", "postgress is not a destination; give postgres://"),
        ("mysql://u:secret@h/d", "mysql is not a destination; give postgres://"),
        # It may be a password.
        ("u:secret@h/d", "u is not a destination"),
        ("@:secret", "that is not a destination"),
        ("host=db user=h password=secret dbname=d", "that is not a destination"),
    ],
)
def test_what_is_no_destination_is_named_with_what_is_one(url: str, said: str) -> None:
    with pytest.raises(Systemic, match=said) as raised:
        destination(url)
    assert "or postgres or chdb, for those of the local stack" in str(raised.value)
    assert "secret" not in str(raised.value)
