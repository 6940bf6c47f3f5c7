"""``python -m multitask train …``, where the command ``multitask`` is not on the path."""

from multitask.commands import main

main()
