"""Fixtures that several test files share."""

from tests.services import client, name, rng, server

__all__ = ["client", "name", "rng", "server"]
