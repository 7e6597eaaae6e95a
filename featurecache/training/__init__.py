"""Shared by all trainings: settings, learning-rate schedules, losses, stopping, checkpoints."""
