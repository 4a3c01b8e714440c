"""gRPC: how a call arrives, is checked and answered, and the RPCs themselves."""
