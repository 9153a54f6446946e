"""The export package's subcommands of ``onebest``."""
