"""Pages: well formed, self-contained, and honest about targets that were missed."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from nova_mp.bench.environment import describe
from nova_mp.bench.histogram import Histogram
from nova_mp.bench.micro import targets
from nova_mp.bench.report import render, table, write_html, write_json
from nova_mp.bench.svg import Axis, Bar, Line, bars, lines
from nova_mp.bench.timing import Case, compare, draw_offsets, take_turns

VOID = {"meta", "br"}


class WellFormed(HTMLParser):
    """Raises AssertionError when tags do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag


def check_page(page: str) -> WellFormed:
    parser = WellFormed()
    parser.feed(page)
    parser.close()
    assert parser.stack == []
    assert parser.links == []
    assert "<script" not in page
    assert "http" not in page
    return parser


def micro_result() -> dict[str, Any]:
    cases = [
        compare(Case("fast", "pwrite", 10, target=1.5), [100] * 7, [200] * 7),
        compare(Case("slow <&>", "stat", 10, target=1.5), [100] * 7, [120] * 7),
        compare(Case("free", "stat", 10), [100] * 7, [50] * 7),
    ]
    fill = {"files": 9, "data_bytes": 36864, "dram_bytes_for_data": 99, "dram_share": 0.003,
            "dram_bytes_per_file": 11.0}
    sides = {"one_per_second": 1e6, "all_per_second": 1.9e6, "ratio": 1.9,
             "one_cpu_ns": 900.0, "all_cpu_ns": 950.0}
    return {
        "kind": "micro", "name": "test", "environment": describe(cpus=2),
        "peer": {"path": "/dev/shm", "file_system": "tmpfs"}, "cases": cases,
        "scaling": {"processes": 2, "nova_mp": sides, "peer": sides, "targets": []},
        "memory": {"small_files": fill, "large_file": fill, "targets": []},
        "recovery": {
            "files": 200, "targets": [],
            "runs": [{"entries": 5, "seconds": 0.1, "entries_per_second": 50,
                      "start_seconds": 0.3}],
        },
    }


def load_result() -> dict[str, Any]:
    histogram = Histogram()
    histogram.record([1_000, 2_000, 500_000])
    latency = {name: histogram.summary() for name in ("service", "lag", "response")}
    figures = {"operations_per_second": 1e5, "bytes_per_second": 4e8, "latency": latency,
               "by_operation": {"read": histogram.summary()}}
    group = {"name": "a", "loop": "open", **figures}
    return {
        "kind": "load", "name": "test", "environment": describe(cpus=200),
        "subject": "nova_mp", "groups": [group], "total": figures,
        "peers": [{"subject": "tmpfs", "groups": [group], "total": figures}],
        "snapshots": {"create_latency": histogram.summary(),
                      "delete_latency": histogram.summary()},
        "verify": {"blocks": 7, "snapshots": 2, "reads_checked": 3, "errors": 0},
    }


def test_the_page_of_a_micro_benchmark(tmp_path: Path) -> None:
    result = micro_result()
    page = render(result)
    check_page(page)
    assert "slow &lt;&amp;&gt;" in page
    assert "slow <&>" not in page
    assert page.count('class="missed"') == 2  # once in the case's row, once among the targets
    write_json(result, tmp_path / "r.json")
    assert render(json.loads((tmp_path / "r.json").read_text())) == page


def test_the_page_of_a_load(tmp_path: Path) -> None:
    result = load_result()
    page = render(result)
    check_page(page)
    assert "include waiting for a core" in page
    write_html(result, tmp_path / "r.html")
    assert (tmp_path / "r.html").stat().st_size == len(page.encode())


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="no page"):
        render({"kind": "poem", "name": "x", "environment": describe(cpus=1)})


def test_targets_are_listed_met_or_missed() -> None:
    assert [row["met"] for row in targets(micro_result())] == [True, False]


def test_a_ratio_is_that_of_the_medians() -> None:
    row = compare(Case("x", "pwrite", 100), [100, 200, 300, 400, 900], [600] * 5)
    assert row["ratio"] == 2.0
    assert row["nova_mp_ns"] == 3.0
    assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
    assert row["met"] is None


def test_sides_take_turns() -> None:
    order: list[str] = []

    def side(name: str, took: int) -> Any:
        def run() -> int:
            order.append(name)
            return took
        return run

    assert take_turns([side("a", 1), side("b", 2)], 3) == [[1, 1, 1], [2, 2, 2]]
    assert "".join(order) == "abababab"


def test_offsets_cover_the_working_set_evenly() -> None:
    case = Case("x", "pwrite", 128, 4096, 64 * 4096)
    offsets = draw_offsets(case, 1)
    assert sorted(offsets) == sorted([*range(0, 64 * 4096, 4096)] * 2)
    assert offsets == draw_offsets(case, 1)
    assert offsets != draw_offsets(case, 2)


def test_plots_of_nothing_are_nothing() -> None:
    assert bars([], "t") == ""
    assert lines([Line("a", [])], Axis("x"), Axis("y"), "t") == ""


@pytest.mark.parametrize("logarithmic", [False, True])
def test_plots_of_one_point(logarithmic: bool) -> None:
    axis = Axis("x", logarithmic=logarithmic)
    check_page(lines([Line("a", [(5.0, 5.0)])], axis, axis, "t"))
    check_page(bars([Bar("a", 0.0, "0")], "t"))


def test_cells_are_escaped() -> None:
    assert "<b>" not in table(("<b>",), [["<b>", ("<b>", "met")]])
