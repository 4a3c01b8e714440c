# One image for the service, its workers, the gateway and the migrations.
FROM python:3.11-slim AS builder
WORKDIR /build
RUN python -m venv /app/.venv
COPY requirements.txt .
RUN /app/.venv/bin/pip install --no-cache-dir --disable-pip-version-check \
	--require-hashes --only-binary :all: -r requirements.txt
COPY protos protos
COPY pyproject.toml .
COPY service service
COPY gateway gateway
COPY runtime runtime
COPY public_json public_json
RUN /app/.venv/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps ./protos .

FROM python:3.11-slim
RUN useradd --system --no-create-home --uid 10001 appointments
WORKDIR /app
COPY --from=builder /app/.venv .venv
COPY migrations migrations
ENV PATH=/app/migrations:/app/.venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001
EXPOSE 50051 3000 9464 9465 9466
STOPSIGNAL SIGTERM
# Other commands: `python -m service worker`, `python -m gateway`, `migrate`.
CMD ["python", "-m", "service"]
