"""`python -m bench.abuse`: what callers of other organizations notice of an attack."""
