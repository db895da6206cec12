"""Commands on the orchestrator's work, filled in with the API."""

COMMANDS = ()
