"""What holds for all tests."""

from hypothesis import settings

settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")
"""Timing targets are never asserted, so a busy machine must not fail a property either."""
