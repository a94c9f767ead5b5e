"""Search and play in this process. See README.md here."""
