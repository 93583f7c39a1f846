"""How a set of weights travels from the learner to a replica: snapshot, receiver, gRPC adapter."""
