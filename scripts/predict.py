"""Write a checkpoint's predictions: python scripts/predict.py ckpt_path=<file> data.path=<file>."""

from multitask.commands.predict import command

if __name__ == "__main__":
    command()
