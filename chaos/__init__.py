"""What becomes of numbered publications while what carries them is killed, frozen and cut off.

Nodes, each a process of its own, publish and listen; between them and a real server stands a proxy.
Everything is logged; when it is over, a checker that knows nothing but the log says what was lost,
and whether whoever lost it was told.
"""
