"""Fuzzing of everything that reads input of callers: `make fuzz DURATION=30`."""
