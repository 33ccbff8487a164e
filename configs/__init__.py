"""One YAML file a verb, and suites; the other groups are made from signatures, see `flowleap.scripts.cli.compose`."""
