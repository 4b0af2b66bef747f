"""MTNeuro task 2: its variants, where it is stored, and how it is fetched from BossDB."""
