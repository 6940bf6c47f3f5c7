"""Lightning callbacks: seeding, interruption, telemetry."""
