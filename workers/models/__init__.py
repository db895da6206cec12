"""Models: Hugging Face Llama folders, whole or shard by shard, and a small one that needs no download."""

from workers.models.reference import generate

__all__ = ["generate"]
