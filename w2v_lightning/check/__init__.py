"""The command `check`: find what would hurt training in a manifest, before it starts."""
