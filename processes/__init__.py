"""Several processes that serve one port: used by the service and the gateway alike."""
