"""One module per command; each reads from top to bottom as what the command does.

`sppnet.cli` imports `sppnet.commands.COMMAND` and calls its `main`. `hydra_app` composes the configuration from the
command line, `checkpoint_app` does so for the commands that start from a trained run.
"""
