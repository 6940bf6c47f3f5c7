"""Puts the configs and the embedded data sets into the wheel; everything else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
# Folders in the package and what they hold; what a user keeps beside it in configs/local and data stays out.
FOLDERS = {
    "configs": [path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "local"],
    "embedded": [
        ROOT / "data" / "NOTICE.md",
        *(ROOT / "data").glob("*_5k.npz"),
        ROOT / "data" / "abalone.csv.gz",
        ROOT / "data" / "speeches.tsv.gz",
    ],
}
SOURCES = {"configs": ROOT / "configs", "embedded": ROOT / "data"}


class WithConfigs(build_py):
    """Copies both into the package, but for an editable install, which finds them in the checkout."""

    def run(self) -> None:
        """Build the package, then copy."""
        super().run()
        if self.editable_mode:
            return
        for name, files in FOLDERS.items():
            target = Path(self.build_lib, "multitask", name)
            shutil.rmtree(target, ignore_errors=True)  # of an earlier build
            for file in files:
                to = target / file.relative_to(SOURCES[name])
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, to)


setup(cmdclass={"build_py": WithConfigs})
