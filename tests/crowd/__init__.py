"""Many remote clients that come and go, some of them by force."""
