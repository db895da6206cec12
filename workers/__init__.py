"""Workers: one process per node, which trains on its partition and hosts shards of split models."""
