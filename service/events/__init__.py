"""Changes published to RabbitMQ, from the history."""
