"""`make bench`: measures throughput and compares it with that of the database alone."""
