"""The processes of a command: which one this is, how they meet, and how they are stopped. Begin with world.py."""
