"""Emulated links: the layout of the wires, and two back ends that impair what goes through them."""
