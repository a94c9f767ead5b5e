"""A training run. See README.md here."""
