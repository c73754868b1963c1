"""The version of the package, written once; pyproject.toml and `nova-mp --version` read it here."""

__version__ = "0.1.0"
