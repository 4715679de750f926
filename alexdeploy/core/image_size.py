"""The size of every decoded image, in a module that imports nothing: the decoder is copied with what it imports."""

IMAGE_SIZE = 256
"""Side in pixels of the square that every image is decoded to; the views are cut from it."""
