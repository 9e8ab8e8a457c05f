"""The benchmarks' arithmetic and tables, on made-up figures; nothing is measured here."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import pytest

from perf import (
    aims,
    command,
    contestants,
    functions,
    loops,
    memory,
    parse,
    report,
    rounds,
    stock,
    tiny,
)
from perf.contestants import LGUEST, OURS, QEMU, STOCK, Booting
from perf.errors import PerfError
from perf.machine import Load, Machine, Versions, busy_seconds, cpu_model
from perf.process import Look, Run, run
from perf.render import NONE, Report, Table, as_markdown, as_text, number, with_spread
from perf.samples import Quantity, Samples
from perf.stats import Spread, paired, spread
from runtime.lguest.loader import looks_like_lguest
from runtime.loader.image import read_image
from switcher import binding
from tests.helpers.launch import guest

# Statistics -------------------------------------------------------------------------


def test_spread_is_median_and_extremes() -> None:
    assert spread([9.0, 1.0, 2.0]) == Spread(2.0, 1.0, 9.0, 3)
    assert spread([1.0, 2.0]) == Spread(1.5, 1.0, 2.0, 2)
    assert spread([]) is None


def test_ratio_is_taken_round_by_round() -> None:
    # A machine that gets ten times slower from round to round: the ratio is 2 in each of them.
    slow, fast = {1: 2.0, 2: 20.0, 3: 200.0}, {1: 1.0, 2: 10.0, 3: 100.0}
    assert paired(slow, fast) == Spread(2.0, 2.0, 2.0, 3)
    # ... and the quotient of the two medians would be something else here.
    assert paired({1: 1.0, 2: 6.0, 3: 5.0}, {1: 1.0, 2: 1.0, 3: 10.0}) == Spread(1.0, 0.5, 6.0, 3)


def test_only_rounds_that_both_have_are_paired() -> None:
    assert paired({1: 4.0, 2: 9.0}, {2: 3.0, 3: 1.0}) == Spread(3.0, 3.0, 3.0, 1)
    assert paired({1: 4.0}, {2: 3.0}) is None
    assert paired({1: 4.0}, {1: 0.0}) is None


def test_every_loop_of_the_guest_has_a_title_and_every_aim_a_loop() -> None:
    names = functions.read(guest("bench64")).by_name
    found = {name.removeprefix(stock.PREFIX) for name in names if name.startswith(stock.PREFIX)}
    assert found == set(loops.TITLES)
    assert set(aims.ON_LOOPS) <= found


# What guests print --------------------------------------------------------------------


def test_cost_lines() -> None:
    text = (
        "cost: 32-bit, 2 CPUs\n"
        "cost ipi-halted median=1700 best=900 of=300\n"
        "cost: PASS (TSC 2445 MHz)\n"
    )
    assert parse.cost_cycles(text) == {"ipi-halted": 1700}
    with pytest.raises(PerfError, match="no figure"):
        parse.cost_cycles("cost: PASS\n")


def test_bench_lines() -> None:
    text = (
        "bench: 64-bit, 2 CPUs\r\n"
        "bench store cpus=1 ops=1000 cycles=2500\r\n"
        "bench lock_shared cpus=2 ops=400 cycles=10000\r\n"
        "bench: PASS (a summary)\r\n"
    )
    assert parse.bench_lines(text) == [
        parse.BenchLine("store", 1, 1000, 2500),
        parse.BenchLine("lock_shared", 2, 400, 10000),
    ]
    assert [line.cost for line in parse.bench_lines(text)] == [2.5, 25.0]


@pytest.mark.parametrize("text", ["", "bench: PASS\n", "bench store cpus=1 ops=0 cycles=5\n"])
def test_no_figure_is_an_error(text: str) -> None:
    with pytest.raises(PerfError, match="figure"):
        parse.bench_lines(text)


def test_latencies() -> None:
    ipi = (
        "ipi: CPU 0 to CPU 0 and seen back: best 3160 cycles, mean 4066\r\n"
        "ipi: CPU 0 to CPU 1 and seen back: best 1690 cycles, mean 4538\r\n"
    )
    halt = "halt: IPI ring of 2, 1 at once:   2000 rounds,    3997 halts, 7028 cycles a wake-up\r\n"
    assert parse.ipi_cycles(ipi) == (1690, 4538)
    assert parse.halt_cycles("\n" + halt) == 7028
    with pytest.raises(PerfError, match="ipi"):
        parse.ipi_cycles(halt)
    with pytest.raises(PerfError, match="halt"):
        parse.halt_cycles(ipi)


# Samples and aims ---------------------------------------------------------------------


def made_up(store: float = 2.0, together: float = 1.0) -> Samples:
    """Three rounds, each twice as slow as the one before for everybody."""
    samples = Samples()
    for number_, slowness in enumerate((1.0, 2.0, 4.0), 1):
        for who, cost in ((OURS, store), (STOCK, 20.0), (QEMU, 3.0)):
            samples.add(number_, who, Quantity.loop("store"), cost * slowness)
        for who in (OURS, QEMU):
            samples.add(number_, who, Quantity.alone("store"), 2.0 * slowness)
            samples.add(number_, who, Quantity.together("store"), together * slowness)
            samples.add(number_, who, Quantity.alone("lock_shared"), 5.0)
            samples.add(number_, who, Quantity.together("lock_shared"), 9.0)
    return samples


def test_faster_is_the_others_cost_over_ours() -> None:
    samples = made_up()
    assert samples.faster(OURS, STOCK, Quantity.loop("store")) == Spread(10.0, 10.0, 10.0, 3)
    assert samples.faster(OURS, QEMU, Quantity.loop("store")) == Spread(1.5, 1.5, 1.5, 3)
    assert samples.speedup(OURS, "store") == Spread(2.0, 2.0, 2.0, 3)
    assert samples.spread(OURS, Quantity.loop("store")) == Spread(4.0, 2.0, 8.0, 3)
    assert samples.spread(OURS, Quantity.loop("call")) is None
    assert samples.loops() == ["store", "lock_shared"]


def test_aims_met_and_missed() -> None:
    good = made_up()
    assert [aim.met for aim in aims.all_aims(good, 2, free=True)] == [True, True, True]
    # 2.6 cycles are 7.7 times faster than stock, and still faster than QEMU; 1.06 is 1.89 times.
    bad = made_up(store=2.6, together=1.06)
    assert [(aim.at_least, aim.met) for aim in aims.all_aims(bad, 2, free=True)] == [
        (8.0, False),
        (1.0, True),
        (1.9, False),
    ]
    assert not any("same line" in aim.what for aim in aims.all_aims(bad, 2, free=True))


def test_loops_without_aim_against_stock_have_none() -> None:
    samples = Samples()
    for who, cost in ((OURS, 1.0), (STOCK, 1.0), (QEMU, 0.5)):
        samples.add(1, who, Quantity.loop("reg"), cost)
    assert aims.against_stock(samples, "reg") is None
    against_qemu = aims.against_qemu(samples, "reg")
    assert against_qemu is not None
    assert not against_qemu.met
    assert against_qemu.verdict == "≥ 1 NOT met"


# Report -------------------------------------------------------------------------------

MACHINE = Machine("A CPU", 2, 2000.0, Versions("abc", "2.1.4", "QEMU 7", "3.11", "6.1"))
QUIET = Load(0.1, 0.2, 0.01)


def made(samples: Samples, load: Load = QUIET, machine: Machine = MACHINE, n: int = 5) -> Report:
    return report.make(samples, report.Run(n, 2, 64, False), machine, load, ["nobody is missing"])


def test_report_has_a_row_for_each_loop() -> None:
    tables = {table.title: table for table in made(made_up()).tables}
    assert list(tables) == [
        "One vCPU: cycles an operation",
        "All 2 vCPUs at once against one of them: throughput ratio",
    ]
    first, second = tables.values()
    assert [list(row) for row in first.rows] == [
        [
            "8 stores",
            "4 (2–8)",
            "40 (20–80)",
            "6 (3–12)",
            "10 (10–10)",
            "≥ 8 met",
            "1.5 (1.5–1.5)",
            "≥ 1 met",
        ]
    ]
    assert [row[1:3] for row in second.rows] == [
        ["2 (2–2)", "≥ 1.9 met"],
        ["0.556 (0.556–0.556)", "–"],
    ]
    assert all(len(row) == len(table.header) for table in tables.values() for row in table.rows)


def test_report_converts_units() -> None:
    samples = Samples()
    samples.add(1, OURS, Quantity.HALT, 7000)  # cycles at 2000 MHz
    samples.add(1, OURS, Quantity.first(2), 0.25)
    samples.add(1, OURS, Quantity.memory(1), 12.5)
    cells = {(table.title, row[0]): row[1] for table in made(samples).tables for row in table.rows}
    assert cells == {
        ("Latency: µs", "IPI wakes a halted vCPU, which sends the next"): "3.5",
        ("Start of the smallest guest: ms", "2 vCPUs: to the first guest instruction"): "250",
        ("Memory (PSS): MiB", "1 vCPU: all processes"): "12.5",
    }


def test_report_of_the_lguest_machine() -> None:
    samples = Samples()
    samples.add(1, LGUEST, Quantity.way("notify"), 6000.0)
    samples.add(1, OURS, Quantity.way("port"), 4000.0)
    samples.add(1, LGUEST, Quantity.way("hypercall"), 5000.0)
    samples.add(1, OURS, Quantity.way("hypercall"), 1.0)  # there is none: not to be shown
    samples.add(1, LGUEST, Quantity.first(1), 0.125)
    ways, start = made(samples).tables
    assert [row[1:] for row in ways.rows] == [["2.5", NONE, NONE], ["3", "2", NONE]]
    assert [row[1:] for row in start.rows] == [["125", NONE, NONE]]


def test_report_says_which_aims_are_missed() -> None:
    assert made(made_up()).summary == ["Aims met: 3 of 3."]
    assert made(made_up(store=2.6)).summary == [
        "Aims met: 2 of 3.",
        "Not met: 8 stores against stock, 7.69 (7.69–7.69) instead of ≥ 8",
    ]


@pytest.mark.parametrize(
    ("load", "cores"), [(Load(0.1, 0.2, 0.3), 2), (QUIET, 1)], ids=["busy", "one core"]
)
def test_throughput_is_not_judged_without_free_cores(load: Load, cores: int) -> None:
    machine = Machine("A CPU", cores, 2000.0, MACHINE.versions)
    judged_out = made(made_up(together=1.5), load, machine)
    assert [row[2] for row in judged_out.tables[1].rows] == ["≥ 1.9 not judged", "–"]
    assert judged_out.summary == [
        "Aims met: 2 of 2.",
        "Not judged: 1 that ask for a free core for each vCPU.",
    ]


def test_warnings() -> None:
    assert made(made_up()).warnings == []
    assert "others used 30%" in made(made_up(), Load(0.1, 0.2, 0.3)).warnings[0]
    one_core = Machine("A CPU", 1, 2000.0, MACHINE.versions)
    assert "had 1 core to run on" in made(made_up(), machine=one_core).warnings[0]
    assert "quick look" in made(made_up(), n=2).warnings[0]


def test_left_out_is_said() -> None:
    assert "nobody is missing" in as_text(made(made_up()))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.123456, "0.123"),
        (0.00000123, "0.000001"),
        (2.0, "2"),
        (12.345, "12.3"),
        (999.4, "999"),
        (999.6, "1,000"),
        (123456.0, "123,000"),
    ],
)
def test_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_with_spread() -> None:
    assert with_spread(None) == "–"
    assert with_spread(Spread(1.5, 1.5, 1.5, 1)) == "1.5"
    assert with_spread(Spread(1.5, 1.0, 2.0, 3)) == "1.5 (1–2)"
    assert with_spread(Spread(1.5, 1.0, 2.0, 3), 1000) == "1,500 (1,000–2,000)"


def test_text_and_markdown() -> None:
    table = Table(
        "A title", "A note.", ["what", "a", "bb"], [["x", "1", "2"], ["long", "100", "–"]]
    )
    made_report = Report(["intro"], [table], ["summary"], ["look out."])
    assert as_text(made_report) == (
        "intro\n\nA title\n  A note.\n\n"
        "  what     a   bb\n"
        "  x        1    2\n"
        "  long   100    –\n\n"
        "summary\n\nWARNING: look out.\n"
    )
    assert as_markdown(made_report) == (
        "intro\n\n### A title\n\nA note.\n\n"
        "| what | a | bb |\n| --- | ---: | ---: |\n| x | 1 | 2 |\n| long | 100 | – |\n\n"
        "summary\n\n**Warning:** look out.\n"
    )


# Machine and memory -------------------------------------------------------------------


def test_busy_seconds_leave_idle_and_iowait_out() -> None:
    stat = "cpu  100 10 20 99999 88888 3 4 5 7 8"
    assert busy_seconds(stat, 100) == pytest.approx(1.42)


def test_cpu_model() -> None:
    text = "processor\t: 0\nmodel name\t: Some CPU\nprocessor\t: 1\nmodel name\t: Other\n"
    assert cpu_model(text) == "Some CPU"
    assert cpu_model("") == "unknown"


def test_memory_of_a_process_and_its_children(tmp_path: Path) -> None:
    def process(pid: int, pss_kib: int, children: str) -> None:
        task = tmp_path / str(pid) / "task" / str(pid)
        task.mkdir(parents=True)
        (task / "children").write_text(children)
        text = f"00-ff ---p 00000000 00:00 0 [rollup]\nRss: 99999 kB\nPss: {pss_kib} kB\n"
        (tmp_path / str(pid) / "smaps_rollup").write_text(text)

    process(10, 1024, "12 11 ")
    process(11, 2048, "")
    process(12, 512, "")
    seen = memory.take(10, tmp_path)
    assert seen.total == pytest.approx(3.5)
    assert seen.workers == (2.0, 0.5)
    assert memory.take(99, tmp_path) == memory.Memory(0.0, ())


# One run of a process -----------------------------------------------------------------


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_run_takes_text_and_times() -> None:
    seen = run(
        "it", python("import time; print('a', flush=True); time.sleep(0.1); print('b')"), timeout=20
    )
    assert seen.text == "a\nb\n"
    assert 0 < seen.first < seen.whole
    assert seen.whole - seen.first >= 0.1


def test_run_looks_once_after_the_marker() -> None:
    pids: list[int] = []
    code = "import os, time; print('now', os.getpid(), flush=True); time.sleep(0.4)"
    seen = run("it", python(code), timeout=20, look=Look(b"now", 0.05, pids.append))
    assert pids == [int(seen.text.split()[1])]
    unseen = run("it", python("print('other')"), timeout=20, look=Look(b"now", 0, pids.append))
    assert unseen.text == "other\n"
    assert len(pids) == 1


def test_run_reports_failures_in_one_sentence() -> None:
    with pytest.raises(PerfError, match=r"^it ended with status 3: it is\s+broken$") as caught:
        run("it", python("import sys; sys.stderr.write('it is\\nbroken'); sys.exit(3)"), timeout=20)
    assert "\n" not in str(caught.value)
    with pytest.raises(PerfError, match=r"^it did not end within 0\.3 s"):
        run("it", python("import time; time.sleep(60)"), timeout=0.3)


def test_tiny_is_a_multiboot_image() -> None:
    image = tiny.image()
    magic, flags, checksum, header, load, load_end, bss_end, entry = struct.unpack_from(
        "<8I", image
    )
    assert (magic + flags + checksum) & 0xFFFFFFFF == 0
    assert (magic, header, load) == (0x1BADB002, tiny.BASE, tiny.BASE)
    assert load_end == bss_end == tiny.BASE + len(image)
    assert image[entry - load :].startswith(b"\x66\xba\xf8\x03")  # mov dx, 0x3f8


def test_tiny_of_the_lguest_machine(tmp_path: Path) -> None:
    path = tiny.write_lguest(tmp_path)
    image = path.read_bytes()
    assert looks_like_lguest(read_image(path))
    offset, _, physical, in_file = struct.unpack_from("<4I", image, 52 + 4)
    memory = image[offset : offset + in_file]
    calls = [tiny.LGUEST_CODE[at : at + 10] for at in (0, 12, 24)]
    numbers = [struct.unpack("<xIxI", call) for call in calls]
    assert [number for number, _ in numbers] == [1, 17, 2]
    data, text, words = (address - physical for _, address in numbers)
    assert memory[text : text + 2] == b"!\0"
    assert memory[words : words + 11] == b"Power down\0"
    assert len(memory) == data + binding.ffi.sizeof("struct lguest_data")


# Functions of an ELF file, run by the stock engine ---------------------------------------

# bench_lock(count, buffer): load the arguments; lock inc of the buffer, count times; return
CODE_32 = bytes.fromhex("8b4c2404 8b542408 f0ff02 49 75fa c3")
CODE_64 = bytes.fromhex("89f9 f0ff06 ffc9 75f9 c3")


def elf_with_symbol(is_64: bool, code: bytes, name: str = "bench_lock") -> bytes:
    """Sections: none, .text at 0x100040 behind 0x40 other bytes, the symbols, their names."""
    names = b"\0" + name.encode() + b"\0other\0"
    other = 2 + len(name)
    address, text = 0x100000, bytes(0x40) + code
    if is_64:
        symbol, section, header = struct.Struct("<IBxHQQ"), struct.Struct("<4xI8xQQQI20x"), 64
        symbols = symbol.pack(1, 2, 1, address + 0x40, len(code))  # 2: a function
        symbols += symbol.pack(other, 1, 1, address, 4)  # 1: an object
    else:
        symbol, section, header = struct.Struct("<IIIBxH"), struct.Struct("<4xI4xIIII12x"), 52
        symbols = symbol.pack(1, address + 0x40, len(code), 2, 1)
        symbols += symbol.pack(other, address, 4, 1, 1)
    body, offsets = b"", []
    for part in (text, symbols, names):
        offsets.append(header + len(body))
        body += part
    sections = section.pack(0, 0, 0, 0, 0) + section.pack(1, address, offsets[0], len(text), 0)
    sections += section.pack(2, 0, offsets[1], len(symbols), 3)
    sections += section.pack(3, 0, offsets[2], len(names), 0)
    head = bytearray(header)
    head[:6] = b"\x7fELF" + bytes([2 if is_64 else 1, 1])
    struct.pack_into("<Q" if is_64 else "<I", head, 0x28 if is_64 else 0x20, header + len(body))
    struct.pack_into("<HH", head, 0x3A if is_64 else 0x2E, section.size, 4)
    return bytes(head) + body + sections


BOTH = pytest.mark.parametrize(("is_64", "code"), [(False, CODE_32), (True, CODE_64)])


@BOTH
def test_functions_of_an_elf_file(is_64: bool, code: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.elf"
    file.write_bytes(elf_with_symbol(is_64, code))
    found = functions.read(file)
    assert found.is_64 is is_64
    assert found.by_name == {"bench_lock": functions.Function("bench_lock", 0x100040, code)}


@BOTH
def test_damaged_elf_files(is_64: bool, code: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.elf"
    whole = elf_with_symbol(is_64, code)
    for data in (b"", b"#!/bin/sh", whole[:40], whole[:-40], whole[:0x2E] + bytes(20)):
        file.write_bytes(data)
        with pytest.raises(
            PerfError, match=r"^a\.elf (is not an ELF file|is damaged|has no symbols)"
        ):
            functions.read(file)


@BOTH
def test_stock_engine_runs_one_function(
    is_64: bool, code: bytes, tmp_path: Path, lib: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIBUNICORN_PATH", "/nowhere")
    file = tmp_path / "a.elf"
    file.write_bytes(elf_with_symbol(is_64, code))
    (line,) = parse.bench_lines(contestants.run_stock(file, [("lock", 1000)], timeout=60))
    assert (line.name, line.cpus, line.ops) == ("lock", 1, 1000)
    with pytest.raises(PerfError, match=r"a\.elf has no function bench_call"):
        contestants.run_stock(file, [("call", 1)], timeout=60)
    file.write_bytes(elf_with_symbol(is_64, b"\x0f\x0b" + code))  # ud2
    with pytest.raises(PerfError, match=r"stock engine stopped in the loop lock"):
        contestants.run_stock(file, [("lock", 1000)], timeout=60)
    file.write_bytes(elf_with_symbol(is_64, b"\xc3" + code))  # returns at once
    with pytest.raises(PerfError, match=r"stock counted 0 of 1000 in lock"):
        contestants.run_stock(file, [("lock", 1000)], timeout=60)


# What is run --------------------------------------------------------------------------

CONSOLE = {
    "bench": "bench store cpus=1 ops=800 cycles=1600\n",
    "ipi": "ipi: CPU 0 to CPU 1 and seen back: best 1690 cycles, mean 4538\n",
    "cost": "cost port median=2000 best=1 of=9\ncost irq median=3000 best=2 of=9\n",
    "halt": "halt: IPI ring of 2, 1 at once: 9 rounds, 9 halts, 7028 cycles a wake-up\n",
}


@pytest.fixture
def booted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, str, int, str]]:
    """Nothing is booted, but noted; guests print what `CONSOLE` says."""
    boots: list[tuple[str, str, int, str]] = []

    def boot(self: Booting, kernel: Path, vcpus: int, append: str = "", **_: object) -> Run:
        boots.append((self.name, kernel.stem, vcpus, append))
        text = CONSOLE.get(kernel.stem, "!")
        if kernel.stem == "bench" and vcpus > 1:
            text += f"bench store cpus={vcpus} ops=1600 cycles=1600\n"
        return Run(text, 0.25, 0.5)

    def stock(kernel: Path, wishes: list[tuple[str, int]], **_: object) -> str:
        boots.append((STOCK, kernel.stem, 1, str(wishes)))
        return "bench store cpus=1 ops=100 cycles=2000\n"

    for name in ("bench", "ipi", "halt", "demo", "cost"):
        (tmp_path / f"{name}.elf").touch()
    monkeypatch.setattr(Booting, "boot", boot)
    monkeypatch.setattr(rounds, "run_stock", stock)
    monkeypatch.setattr(rounds, "GUESTS", tmp_path)
    return boots


def plan(*words: str) -> rounds.Plan:
    return command.make_plan(command.build_parser().parse_args(["--bits", "32", *words]))


def take(*words: str) -> Samples:
    samples = Samples()
    both = [Booting(name, (), "", "", ()) for name in (OURS, QEMU)]
    rounds.Rounds(plan(*words), both, samples, lambda text: None).run()
    return samples


def test_contestants_take_turns(booted: list[tuple[str, str, int, str]]) -> None:
    samples = take("--rounds", "2", "--part", "loops", "--loop", "store")
    one_round = [
        (OURS, "bench", 1, "only=store"),
        (STOCK, "bench", 1, "[('store', 100)]"),  # 800 operations were ours, an eighth is its share
        (QEMU, "bench", 1, "only=store"),
        (OURS, "bench", 2, "only=store"),
        (QEMU, "bench", 2, "only=store"),
    ]
    assert booted == one_round * 2
    assert samples.series(STOCK, Quantity.loop("store")) == {1: 20.0, 2: 20.0}
    assert samples.series(OURS, Quantity.alone("store")) == {1: 2.0, 2: 2.0}
    assert samples.series(OURS, Quantity.together("store")) == {1: 1.0, 2: 1.0}


def test_one_vcpu_needs_no_second_machine(booted: list[tuple[str, str, int, str]]) -> None:
    samples = take("--rounds", "1", "--vcpus", "1")
    assert {vcpus for _, _, vcpus, _ in booted} == {1}
    assert samples.spread(OURS, Quantity.IPI_BEST) is None
    assert samples.spread(OURS, Quantity.first(1)) == Spread(0.25, 0.25, 0.25, 1)


def test_every_part_is_taken(booted: list[tuple[str, str, int, str]]) -> None:
    samples = take("--rounds", "1")
    kernels = {kernel for _, kernel, _, _ in booted}
    assert kernels == {"bench", "ipi", "halt", "tiny", "demo", "cost"}
    assert samples.series(QEMU, Quantity.IPI_MEAN) == {1: 4538}
    assert samples.series(QEMU, Quantity.HALT) == {1: 7028}
    assert samples.series(OURS, Quantity.whole(2)) == {1: 0.5}


def test_the_lguest_machine_stands_beside_the_pc(booted: list[tuple[str, str, int, str]]) -> None:
    samples = take("--rounds", "2", "--part", "lguest")
    one_round = [
        (OURS, "cost", 2, ""),
        (QEMU, "cost", 2, ""),
        (LGUEST, "cost", 2, "clock"),
        (OURS, "tiny", 1, ""),
        (QEMU, "tiny", 1, ""),
        (LGUEST, "tiny", 1, ""),
    ]
    assert booted == one_round * 2
    assert samples.series(LGUEST, Quantity.way("irq")) == {1: 3000, 2: 3000}
    assert samples.series(QEMU, Quantity.way("port")) == {1: 2000, 2: 2000}
    assert samples.series(LGUEST, Quantity.whole(1)) == {1: 0.5, 2: 0.5}


def test_a_guest_that_is_not_built(booted: list[tuple[str, str, int, str]], tmp_path: Path) -> None:
    (tmp_path / "bench.elf").unlink()
    with pytest.raises(PerfError, match=r"bench\.elf is not built: run `make guests`"):
        take("--part", "loops")


def test_a_failed_run_is_told_and_costs_nothing_else(
    booted: list[tuple[str, str, int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    working = Booting.boot

    def boot(self: Booting, kernel: Path, vcpus: int, *more: object, **options: object) -> Run:
        if self.name == QEMU and kernel.stem == "ipi":
            raise PerfError("QEMU had a bad day")
        return working(self, kernel, vcpus, *more, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Booting, "boot", boot)
    samples = Samples()
    both = [Booting(name, (), "", "", ()) for name in (OURS, QEMU)]
    taken = rounds.Rounds(plan("--rounds", "2"), both, samples, lambda text: None)
    taken.run()
    assert taken.failures == ["round 1: QEMU had a bad day", "round 2: QEMU had a bad day"]
    assert samples.series(QEMU, Quantity.IPI_BEST) == {}
    assert samples.series(OURS, Quantity.IPI_BEST) == {1: 1690, 2: 1690}
    assert samples.series(QEMU, Quantity.HALT) == {1: 7028, 2: 7028}


# The command --------------------------------------------------------------------------


def test_plan() -> None:
    assert plan().rounds == 5
    assert plan("--quick").rounds == 2
    assert plan("--quick", "--rounds", "7").rounds == 7
    assert plan("--part", "memory,loops").parts == ("loops", "memory")
    assert not plan("--without", "stock").with_stock


@pytest.mark.parametrize("words", [["--part", "loops,x"], ["--without", "everybody"]])
def test_unknown_names(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(words) == 1
    said = capsys.readouterr().err
    assert said.startswith("perf: '")
    assert said.count("\n") == 1


@pytest.mark.parametrize("words", [["--rounds", "0"], ["--vcpus", "17"], ["--what"]])
def test_wrong_options(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(words)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--help" in said


def test_json_has_every_sample(
    booted: list[tuple[str, str, int, str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(contestants, "ours", lambda: Booting(OURS, (), "", "", ()))
    monkeypatch.setattr(contestants, "qemu", lambda: None)
    monkeypatch.setattr(command, "describe", lambda: MACHINE)
    file = tmp_path / "out.json"
    words = ["--bits", "32", "--rounds", "3", "--json", str(file), "--markdown"]
    assert command.main(words) == 0
    result = json.loads(file.read_text())
    assert {"round": 3, "contestant": STOCK, "quantity": "loop/store", "value": 20.0} in result[
        "samples"
    ]
    assert result["machine"]["versions"]["unicorn"] == "2.1.4"
    assert set(result["load"]) == {"before", "after", "others"}
    out = capsys.readouterr().out
    assert "| 8 stores | 2 (2–2) | 20 (20–20) | – | 10 (10–10) | ≥ 8 met | – | – |" in out
    assert "apt install qemu-system-x86" in out


def test_json_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--json", str(tmp_path)]) == 1
    assert "cannot be written" in capsys.readouterr().err
