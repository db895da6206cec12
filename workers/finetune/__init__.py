"""A node's part in fine-tuning: its data, its steps, and the forms of its updates."""
