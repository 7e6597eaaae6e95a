"""A built imgaug tree as plain functions that give the same pixels as imgaug, bit for bit.

imgaug spends most of its time per image on overhead: batches, copies, checks, and wrapping and
copying generators. Here a tree is read once, when its policy is built, and becomes steps that draw
the same numbers from the same generators (draws.py) and do the same arithmetic with OpenCV and
NumPy only (geometry.py, colours.py). tree.py puts the steps together.

Anything not reproduced to the last bit (another augmenter, another kind of parameter, another
version of the library) raises Unknown, and imgaug itself runs the tree. tests/test_replay.py
compares the two.
"""
