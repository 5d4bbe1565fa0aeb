"""The trainer that cptplan starts as a process: corpora, one training loop, exact resume."""
