"""What gRPC servers and clients here share."""
