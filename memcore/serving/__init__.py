"""A local page and two HTTP interfaces over sessions: a thin layer over what memcore offers to everyone.

``asking`` and ``report`` need nothing more than memcore; the rest needs the extra ``serve``.
"""
