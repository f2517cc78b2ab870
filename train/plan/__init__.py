"""What a training run will take: memory, time and money, before anyone pays for it."""
