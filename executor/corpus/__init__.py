"""From documents to token shards: reading, curating, tokenizing, packing."""
