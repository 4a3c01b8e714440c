"""HTTP requests to messages: routes, path, query and JSON body."""
