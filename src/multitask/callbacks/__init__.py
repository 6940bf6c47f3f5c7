"""Lightning callbacks for checkpoints, schedules, early stopping, telemetry and plots."""
