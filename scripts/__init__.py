"""The command line: thin scripts that bring policy, envs and datasets together."""
