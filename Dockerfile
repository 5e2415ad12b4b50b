# One image for every role: docker run millstream:0.1.0 gateway
FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python -m venv /opt/millstream
# The lock alone first: this layer is built anew only when a dependency changes.
COPY requirements.lock .
RUN /opt/millstream/bin/pip install --require-hashes -r requirements.lock
COPY . .
RUN /opt/millstream/bin/pip install --no-deps --no-build-isolation .

FROM python:3.11-slim-bookworm
# The state directory must exist and belong to the user before a volume is put there.
RUN useradd --system --user-group --uid 10001 --home-dir /var/lib/millstream millstream \
    && install -d -o millstream -g millstream -m 0700 /var/lib/millstream \
    && install -d -o millstream -g millstream -m 0755 /var/lib/millstream-trust \
    && install -d -o 10002 -g 10002 -m 0755 /run/millstream-trial
COPY --from=build /opt/millstream /opt/millstream
ENV PATH=/opt/millstream/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MILLSTREAM_STATE_DIR=/var/lib/millstream \
    MILLSTREAM_LISTEN=0.0.0.0:50051 \
    MILLSTREAM_LOG_FORMAT=json
USER millstream
WORKDIR /var/lib/millstream
# An orchestrator's stop is a drain: no new work, what runs is finished.
STOPSIGNAL SIGTERM
EXPOSE 50051
ENTRYPOINT ["millstream"]
CMD ["--help"]
