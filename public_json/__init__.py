"""How messages are printed as JSON wherever they go: REST, streams, webhooks, RabbitMQ."""
