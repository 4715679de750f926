"""The reference trainer: packed sets, augmentation, the paper's SGD, schedules, checkpoints; in one process or many."""
