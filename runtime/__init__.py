"""What both programs are run by: start and end, logs, settings, listening, repeated attempts."""
