"""The table of backbone families: name -> class behind the face of `wan/family.py`, resolved on use.

They are asked from the last to the first whether a file is theirs: one that extends another stands behind it.
"""

FAMILIES = {
    "wan": "wan.backbone:Wan",
    "s2v": "wan.audio.family:S2V",
    "cogvideox": "cogvideox.family:CogVideoX",
}
