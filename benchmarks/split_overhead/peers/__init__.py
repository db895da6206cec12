"""What our engine is compared with; each in a process of its own, driven as round_overhead's arms are."""
