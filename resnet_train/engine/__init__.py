"""What a training step is made of: ranks, plan, optimizer, step, checkpoint."""
