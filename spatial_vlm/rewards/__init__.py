"""Rewards of sampled answers, computed from token ids on the device."""
