"""The engine's processes: sockets and loops. What they decide is in `nova_mp.cluster`."""
