"""The task families, each a module with `TASKS` and `make`, and their scripted experts."""
