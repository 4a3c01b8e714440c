"""`make bench`: how fast it is, against what the database alone can do."""
