"""Blob in Python's words. See README.md here."""
