"""One run from its config to its results: the entry points of the scripts.

``config`` is the whole config. One that cannot work raises :class:`~multitask.errors.ConfigError`, whose message is one
sentence that names the key and what to change; functions named ``check_…`` do nothing else.
"""
