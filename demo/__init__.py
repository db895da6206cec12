"""The main job, end to end: measure, fine-tune, split, degrade, report."""
