"""Networks. See README.md here."""
