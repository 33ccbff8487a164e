"""The command line: verbs, their options, running them under hydra."""
