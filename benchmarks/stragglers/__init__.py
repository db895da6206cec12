"""How much less time fine-tuning takes when stragglers are left out, in simulation and in emulation.

`python -m benchmarks.stragglers --json FILE`.
"""
