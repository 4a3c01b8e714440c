"""Webhooks: the changes of an organization, sent to the URLs that it registered."""
