"""The endpoints of all routes and pages."""
