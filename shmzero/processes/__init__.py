"""Children of any kind. See README.md here."""
