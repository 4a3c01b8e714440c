"""HTTP: server, router, bodies, conditional requests, responses and problems."""
