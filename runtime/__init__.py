"""What both programs are run by: logs, listening, settings, repeated attempts."""
