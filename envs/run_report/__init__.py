"""One page about training runs: what they scored, how they fail, how they were made."""
