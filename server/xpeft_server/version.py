"""The version, also of packages that are on the path without being installed."""

from __future__ import annotations

from typing import Final

VERSION: Final = "0.1.0"
"""Hatchling reads it here, too."""
