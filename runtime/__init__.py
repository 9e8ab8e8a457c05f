"""The Host: guest RAM, the Big Lock, devices, notifications, and the life of the vCPU workers."""
