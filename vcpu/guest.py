"""run_guest(): the loop that is a virtual CPU, in lguest's order.

lguest: `while not dead: hypercalls → pending notify → freeze? → signal? →
deliver an interrupt → dead? → halted? sleep → switch to the Guest → handle the
trap`.  On the pc machine interrupts, traps and short halts are the Switcher's
(native code inside `switch_to_guest`): what comes back here needs a decision.
"""

from __future__ import annotations

from vcpu.cpu import VCpu


def run_guest(cpu: VCpu) -> None:
    """Run `cpu` until the Guest is dead or the Host is gone.

    Raises HostError when the engine fails, and whatever a user's hook raised.
    """
    while not cpu.dead:
        # What the Guest asked for when it last came out.
        cpu.do_hypercalls()
        if cpu.pending_notify is not None:
            cpu.send_notify()
            continue  # there may be more hypercalls behind it

        # What others ask of this vCPU, if there may be anything; one interrupt at most.
        if cpu.look():
            if cpu.pause_wanted:
                cpu.freeze()
            if cpu.orphaned:
                return
            cpu.deliver_interrupt()
            if cpu.dead:
                return

        # Asleep until somebody sends something; then look at everything again,
        # because it may have been a pause or the end.
        if cpu.halted:
            cpu.sleep()
            if cpu.dead or cpu.pause_wanted or cpu.look_again_after_sleep:
                continue

        cpu.handle_exit(cpu.switch_to_guest())
