"""`prepare`: a corpus in any of several forms becomes a manifest, and shards where they are asked for."""
