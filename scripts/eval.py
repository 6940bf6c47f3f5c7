"""Evaluate a checkpoint: python scripts/eval.py ckpt_path=<file> (on another machine: paths.data=/datasets)."""

from multitask.commands.eval import main

if __name__ == "__main__":
    main()
