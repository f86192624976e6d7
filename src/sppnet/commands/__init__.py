"""One module per command; each lists the steps of its command from top to bottom.

`sppnet.cli` imports `sppnet.commands.COMMAND` and calls its `main`. `hydra_app` composes the configuration from the
command line, and `checkpoint_app` composes it on top of a trained run's configuration.
"""
