"""A node's part in split inference: shards of models, their caches, and the ring that requests go round."""
