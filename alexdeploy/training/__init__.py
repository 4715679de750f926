"""The reference trainer: augmentation, the paper's SGD, schedules, checkpoints."""
