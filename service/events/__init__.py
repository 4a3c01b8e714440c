"""Publishes the changes in the history to RabbitMQ."""
