"""The fine-tuning job: an engine without I/O and the driver that carries out what it decides."""
