"""When resources are free: opening hours, time zones and ranges of time. Reads nothing."""
