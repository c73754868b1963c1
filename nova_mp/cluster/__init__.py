"""The engine: what its processes decide (state machines without I/O), and how it is launched."""
