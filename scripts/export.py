"""Export a checkpoint's model: python scripts/export.py ckpt_path=<file> format=onnx."""

from multitask.commands.export import main

if __name__ == "__main__":
    main()
