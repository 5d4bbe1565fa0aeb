"""From a fitted law to a plan: what may be chosen, what is expected of it, the search, and the reasons."""
