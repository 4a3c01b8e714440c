"""What callers read: messages as JSON (REST, streams, webhooks, RabbitMQ), reasons of errors."""
