"""Run folders. See README.md here."""
