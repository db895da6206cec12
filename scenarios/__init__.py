"""Scenarios: topology + links + devices + workload + targets, in YAML, with one checked schema."""
