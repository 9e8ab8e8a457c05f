"""The vCPU of the lguest machine: hypercalls, traps, interrupts, segments, stacks."""
