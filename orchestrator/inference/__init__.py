"""Split-inference deployments: an engine without I/O and the driver that carries out what it decides."""
