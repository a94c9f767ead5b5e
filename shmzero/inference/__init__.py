"""The inference process. See README.md here."""
