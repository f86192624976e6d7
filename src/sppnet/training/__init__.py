"""One run in one process: network, data and Lightning's Trainer; checkpoints, metrics, tests in several views."""
