"""What gRPC servers and clients here share: the server, its guard and call metrics, errors as statuses."""
