"""Virtio devices: the ring, the thread that serves a queue, and one file a device."""
