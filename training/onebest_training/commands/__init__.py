"""The training package's subcommands of ``onebest``."""
