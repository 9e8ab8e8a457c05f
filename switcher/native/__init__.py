"""The Switcher's C: control block, local APIC, code coherence, run slice."""
