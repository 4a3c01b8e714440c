"""The public JSON format: messages (REST, event streams, webhooks, RabbitMQ), error reasons."""
