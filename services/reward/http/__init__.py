"""The HTTP transport: the server, its fast path for POST requests, and their OpenAPI documentation."""
