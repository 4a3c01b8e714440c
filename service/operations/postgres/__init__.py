"""The operation queue in PostgreSQL, and its worker."""
