"""The gRPC layer: receives, checks and answers calls, and implements the RPCs."""
