"""The learner process. See README.md here."""
