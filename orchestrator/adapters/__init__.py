"""Adapters: the orchestrator's only ways to the network, the disk and the workers."""
