"""The operation queue in RabbitMQ, and its worker."""
