"""Measure a checkpoint: python scripts/eval.py ckpt_path=<file> (elsewhere: paths.data=/datasets)."""

from multitask.commands.eval import main

if __name__ == "__main__":
    main()
