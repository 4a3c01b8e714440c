"""PostgreSQL: connections, sessions, rows, and the state of the schema."""
