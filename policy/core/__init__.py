"""What every part builds on, without torch: Spec, errors, registries, files, versions."""
