"""PostgreSQL: connections, session settings, rows, schema checks, migrations."""
