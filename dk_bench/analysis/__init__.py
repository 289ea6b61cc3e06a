"""Studies of what models do: receptive fields, learned dynamics, taps, and times."""
