"""The predict pipeline from images to rows, the formats of rows, and the journal behind `--resume`."""
