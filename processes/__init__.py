"""What the programs are as processes: their logs, and several of one on one port."""
