"""Write a checkpoint's predictions: python scripts/predict.py ckpt_path=<file> data.path=<file>."""

from multitask.commands.predict import main

if __name__ == "__main__":
    main()
