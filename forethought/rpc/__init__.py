"""Shared gRPC code of servers and clients: the server, its guard, call metrics, errors as statuses."""
