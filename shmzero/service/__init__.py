"""Models behind a name. See README.md here."""
