"""One run in one process: data, network, training, checkpoints, test.

1. `preflight.py`: do the optimizer, network, sizes and hardware fit together? Needs torch, but no data.
2. `trainer.py`, `prepare`: splits the data, builds the network and the user's callbacks (`user_callbacks.py`).
3. `trainer.py`, `fit`: picks the checkpoint to resume from (`resume.py`) and calls `lightning.Trainer.fit`.
4. `lit_module.py`: what a step does. Loss in `losses.py`, metrics by input size in `metrics.py`, optimizer and
   learning-rate schedule in `optim.py`, averaged weights in `ema.py`.
5. During training: `checkpointing.py` saves and stops, `loggers.py` writes metrics.jsonl and its mirrors,
   `callbacks.py` writes status.json and shows progress.
6. `trainer.py`, `run_test`: scores best.ckpt, in several views by `multi_view.py`.

Commands that start from a trained network (predict, transfer, test) load it by `inference.py`.
"""
