# Headrace in a container: `headrace` and nothing else, as a user without rights.
# amd64 only: pgpq has no wheel for other processors on Linux.

FROM python:3.13.14-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
# What runs: exact versions, every file checked against its hash. First, because it changes seldom.
COPY requirements-run.txt .
RUN python -m venv /opt/headrace \
 && /opt/headrace/bin/pip install --require-hashes -r requirements-run.txt
# What builds the project's own wheel, from the same lock; tests/unit/test_compose.py says when this
# list is too short.
COPY requirements.txt .
RUN awk '/^[a-z]/ { keep = /^(hatchling|packaging|pathspec|pluggy|tomlkit|trove-classifiers)==/ } keep' \
      requirements.txt > requirements-build.txt \
 && python -m venv /build \
 && /build/bin/pip install --require-hashes -r requirements-build.txt
COPY pyproject.toml README.md LICENSE ./
COPY headrace headrace
COPY ingest ingest
COPY consumers consumers
RUN /build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheel . \
 && /opt/headrace/bin/pip install --no-deps /wheel/*.whl

FROM python:3.13.14-slim-bookworm
RUN useradd --system --uid 10001 --no-create-home headrace
COPY --from=build /opt/headrace /opt/headrace
ENV PATH=/opt/headrace/bin:$PATH PYTHONUNBUFFERED=1
# A headrace.toml that is mounted here is found without being named.
WORKDIR /etc/headrace
USER 10001
ENTRYPOINT ["headrace"]
CMD ["--help"]
