"""Errors of reading, building and training models: branches of `workers.errors.ModelError`."""

from __future__ import annotations

from workers.errors import ModelError


class UnsupportedModel(ModelError):
    """A model of a kind, or with a feature, that this version does not run."""


class BrokenModel(ModelError):
    """A model folder, or a set of parameters, that contradicts its own configuration."""
