"""One vCPU, one process: set-up, run_guest(), last words."""
