"""Train: python scripts/train.py weighting=upgrad seed=1 (a sweep: -m weighting=imtl_l,upgrad seed=0,1,2)."""

from multitask.commands.train import main

if __name__ == "__main__":
    main()
