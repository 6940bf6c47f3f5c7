"""Export a checkpoint's model: python scripts/export.py ckpt_path=<file> format=onnx."""

from multitask.commands.export import command

if __name__ == "__main__":
    command()
