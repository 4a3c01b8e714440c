"""Runs everything on this machine: PostgreSQL, RabbitMQ, service, worker and gateway."""
