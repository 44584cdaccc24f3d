"""The command `prepare`: make a manifest, and optionally tar shards, from corpora in any of several formats."""
