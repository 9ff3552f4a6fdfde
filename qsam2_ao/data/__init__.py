"""Videos and images with their masks: generated here, or read from the layouts that users have."""
