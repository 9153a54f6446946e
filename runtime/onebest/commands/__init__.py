"""The subcommands of ``onebest`` that the runtime brings: ``transcribe`` and ``evaluate``."""
