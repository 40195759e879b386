"""Training of DeCLIP's projectors on any open_clip tower (arXiv 2503.02206, sections 3.2 and 4.1): `declip train`.

records -> ``bank`` (frozen towers, once) -> ``loop`` (projectors) -> ``report`` (are look and content separate?);
``run`` puts them together.
"""
