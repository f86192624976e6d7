"""Training and testing of one run, in one process.

1. `preflight.py` checks that the optimizer, network, sizes and hardware fit together. It needs torch but no data.
2. `prepare` in `trainer.py` splits the data and builds the network and the user's callbacks (`user_callbacks.py`).
3. `fit` in `trainer.py` picks the checkpoint to resume from (`resume.py`), builds Lightning's Trainer
   (`lightning_trainer.py`) and calls its `fit`.
4. `lit_module.py` defines the training, validation and test steps. It uses the losses in `losses.py` (`loss_check.py`
   checks the user's own before training), mixup and CutMix in `mix.py`, the metrics per input size in `metrics.py`, and
   the optimizer and learning-rate schedules in `optim.py`. `ema.py` averages the weights.
5. During training, `checkpointing.py` saves checkpoints and handles stop signals, `loggers.py` writes metrics.jsonl and
   can mirror it to wandb and TensorBoard, and `callbacks.py` writes status.json and shows progress.
6. `run_test` in `trainer.py` tests best.ckpt. `multi_view.py` scores several views of an image.

Commands that start from a trained network (predict, transfer, test) load it with `inference.py`.
"""
