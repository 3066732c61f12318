"""A memcore backend in one SQLite file. ``plugin`` is what memcore finds; ``backend`` is loaded when it is used."""
