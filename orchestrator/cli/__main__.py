"""`python -m orchestrator.cli`, the same as `utopia`."""

from orchestrator.cli import main

main()
