"""The OpenAPI document, made from the protos' annotations and comments."""
