"""From documents to token shards: reading, splitting, tokenizing, packing; the demo's own corpora."""
