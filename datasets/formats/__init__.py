"""The dataset formats: a registry, a reader each, writers for those that can be written."""
