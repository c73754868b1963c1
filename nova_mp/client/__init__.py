"""File systems as their users hold them: attached to an arena, or by way of a worker."""
