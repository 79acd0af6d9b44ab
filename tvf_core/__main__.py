"""``python -m tvf_core``: the ``tvf`` command, also for ``accelerate launch -m tvf_core``."""

from .commands import entry

entry()
