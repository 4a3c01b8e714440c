"""Who calls: credentials, and what they allow."""
