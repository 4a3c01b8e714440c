"""Asynchronous writes: operations, accepted into a queue and applied by workers."""
