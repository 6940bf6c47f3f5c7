"""``python -m multitask train …``, if the command ``multitask`` is not on the path."""

from multitask.commands import main

main()
