"""What the commands share. See README.md here."""
