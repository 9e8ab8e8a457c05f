"""The devices of the `pc` machine, one small file each; they run in the Host, under the Big Lock."""
