"""The appointment service: gRPC in front, PostgreSQL behind, one write path between."""
