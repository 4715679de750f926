"""Images in, rows of answers out: the predict pipeline, the formats of rows, and the journal behind `--resume`."""
