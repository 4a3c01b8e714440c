"""Imports, exports and watches appointments, over the stubs alone: `python -m client`."""
