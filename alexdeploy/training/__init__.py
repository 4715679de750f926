"""The reference trainer: packed sets, augmentation, the paper's SGD, schedules, checkpoints; one or more processes."""
