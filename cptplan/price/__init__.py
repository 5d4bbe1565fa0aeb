"""What a run costs: FLOPs, memory, hours, money, energy."""
