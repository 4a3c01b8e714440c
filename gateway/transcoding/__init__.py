"""Converts HTTP requests to messages: routes, path, query, headers and JSON body."""
