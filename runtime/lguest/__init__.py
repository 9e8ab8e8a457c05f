"""The lguest machine: the Launcher's and the Host's half (docs/lguest.md)."""
