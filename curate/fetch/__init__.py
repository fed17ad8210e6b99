"""Download: URL lists in, pool shards out."""
