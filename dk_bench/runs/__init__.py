"""What a run leaves: its record, its attempts, its lock, and what it ran on. Begin with record.py; identity.py tells
which cell a run belongs to."""
