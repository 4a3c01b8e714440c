"""Rate limits for credentials and organizations, shared by all processes of the service."""
