"""Every change of every organization as a message for others."""
