"""One module per command, with the steps of the command in order from top to bottom.

`sppnet.cli` imports `sppnet.commands.COMMAND` and calls its `main`. `hydra_app` composes a command's configuration from
the command line. For commands that take a `checkpoint`, `checkpoint_app` starts from the trained run's configuration.
"""
