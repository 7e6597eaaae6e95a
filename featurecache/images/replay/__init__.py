"""Replay: a built tree of imgaug as plain functions, which give imgaug's own pixels, bit for bit.

imgaug spends most of an image's time around its work: batches, copies, checks, generators wrapped
and copied. Here a tree is read once, when its policy is built, into steps that draw the same
numbers from the same generators (draws.py) and do the same arithmetic, through OpenCV and NumPy
alone (geometry.py, colours.py). tree.py puts them together.

What is not known to the last bit (another augmenter, another kind of parameter, another version of
the library) raises Unknown, and imgaug runs the tree itself. tests/test_replay.py holds the two
against each other.
"""
