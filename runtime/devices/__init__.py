"""The devices of the `pc` machine, one small file each; all run under the Big Lock."""
