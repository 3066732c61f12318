"""The command line: ``memcore`` and its commands.

Nothing here imports torch or transformers before a command runs, so that help comes at once.
"""

from memcore.cli.app import app

__all__ = ["app"]
