"""What a run leaves: its record, its attempts, its lock, and what it ran on."""
