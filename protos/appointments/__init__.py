"""The .proto files and their typed gRPC stubs, one Python package for each proto package."""

__version__ = "0.1.0"
"""The version of the whole project: service, gateway, stubs and API. It is defined only here."""
