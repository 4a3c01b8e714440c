"""`python -m service verify`: checks a database, by rules that do not use its functions.

It reads the history as evidence: what it says must be possible, and the stored state must be what
it leads to. It only reads, in one snapshot, so it can run while the service writes.
"""
