"""Weight transfer from the learner to a replica: snapshot, receiver, gRPC adapter."""
