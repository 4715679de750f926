"""Files, folders and archives decoded to uint8 images of 256x256x3, and the views cut from them."""
