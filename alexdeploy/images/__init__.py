"""Decoding files, folders and archives to uint8 images of 256x256x3, and cutting views from them."""
