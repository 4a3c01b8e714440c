"""Protos and typed gRPC stubs; each package of them is a package here."""

__version__ = "0.1.0"
"""Of the project, its service and gateway and the API included; it stands nowhere else."""
