"""The whole on this machine: PostgreSQL, RabbitMQ, service, worker and gateway."""
