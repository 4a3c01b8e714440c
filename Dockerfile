# One image for the service, its workers, the gateway and the migrations. docs/operations.md says how to
# build it for several architectures, and how to pin its base.
ARG PYTHON_IMAGE=python:3.11-slim

# Only other requirements build this layer again.
FROM ${PYTHON_IMAGE} AS dependencies
RUN python3 -m venv --without-pip /app/.venv
COPY requirements.txt .
RUN python3 -m pip --python /app/.venv/bin/python install --no-cache-dir \
	--disable-pip-version-check --require-hashes --only-binary :all: -r requirements.txt

# The code is used as it is, without a build backend.
FROM ${PYTHON_IMAGE} AS code
WORKDIR /app
COPY protos/appointments appointments
COPY service service
COPY gateway gateway
COPY runtime runtime
COPY public_json public_json
RUN python3 -m compileall -q .
COPY migrations migrations

FROM ${PYTHON_IMAGE}
# Nothing is installed in a running container.
RUN find /usr -xdev -depth -type d \( -name pip -o -name "pip-*" -o -name ensurepip \
		-o -name setuptools -o -name "setuptools-*" \) -exec rm -rf {} + \
	&& useradd --system --no-create-home --uid 10001 appointments
WORKDIR /app
COPY --from=dependencies /app/.venv .venv
COPY --from=code /app .
ENV PATH=/app/migrations:/app/.venv/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 \
	PYTHONDONTWRITEBYTECODE=1
USER 10001
EXPOSE 50051 3000 9464 9465 9466
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=10s --start-period=30s --retries=3 \
	CMD ["python", "-m", "runtime.health_check"]
# Other commands: `python -m service worker`, `python -m gateway`, `migrate`.
CMD ["python", "-m", "service"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="appointments" \
	org.opencontainers.image.description="Appointment service that never double-books" \
	org.opencontainers.image.version="${VERSION}" \
	org.opencontainers.image.revision="${REVISION}"
