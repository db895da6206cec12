"""How right the controller is: its measurements against the emulator's truth, the classic method beside it.

`python -m benchmarks.network_accuracy [--quick] [--part NAME ...] [--networks N] --json FILE`. Seeded
networks over the three setups are started on the testbed (controller and network, no workers); phases.py
says what is compared with what, figures.py how figures are made of it, classic.py what the classic method is.
"""
