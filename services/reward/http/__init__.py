"""The HTTP endpoint: the server, its fast path for POST requests, and what OpenAPI shows of both."""
