"""What this project claims, measured: accuracy, cost of training."""
