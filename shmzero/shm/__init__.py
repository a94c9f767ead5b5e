"""Segments of shared memory. See README.md here."""
