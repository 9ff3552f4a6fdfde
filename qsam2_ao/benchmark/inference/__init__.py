"""Speed, size and memory of deployed models beside what people would use instead."""
