"""Arenas in private memory, and the states that a power failure can leave them in."""
