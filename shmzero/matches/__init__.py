"""Matches and ratings. See README.md here."""
