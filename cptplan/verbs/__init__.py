"""The verbs of the command line, a module for each or a few of a kind."""
