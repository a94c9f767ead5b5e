"""The version, where packaging reads it without importing the extension."""

from __future__ import annotations

VERSION = "0.1.0"
