"""The benchmarks: smpguest, stock Unicorn and QEMU side by side in one run (docs/performance.md).

In reading order: `__main__` the command line, `rounds` what is run when, `contestants` who takes
part, `process` one run of one of them, `parse` what a guest printed, `samples` and `stats` the
figures, `aims` what they are held against, `report` the tables, `render` text and Markdown;
`tiny` the smallest guests, `clocked` the Launcher with a device that tells a guest the time.
"""
