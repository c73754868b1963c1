"""Mutated messages for sockets that must not mind them."""
