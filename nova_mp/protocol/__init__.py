"""What processes say to each other: one frozen dataclass per message, and its encoding."""
