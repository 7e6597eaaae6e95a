"""What trainings share: learning-rate schedules, stopping, checkpoints."""
