"""The fleet of self-play. See README.md here."""
