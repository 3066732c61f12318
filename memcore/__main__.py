"""``python -m memcore``: the command line, also where no ``memcore`` is on the path."""

from memcore.cli import app

if __name__ == "__main__":
    app(prog_name="memcore")
