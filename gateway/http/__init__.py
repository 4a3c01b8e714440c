"""HTTP: the server, bodies, conditional requests, and problems as answers."""
