"""The version, where packaging reads it without importing the extension."""

VERSION = "0.1.0"
