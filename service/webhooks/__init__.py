"""Webhooks: changes of organizations, sent to the URLs that they have registered."""
