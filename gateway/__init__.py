"""REST gateway of the appointment service: HTTP and JSON outside, gRPC inside."""
