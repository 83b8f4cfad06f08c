"""The results as a table for the documentation, and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .harness import EXECNET, FARWIRE, FLOOR, Bench, Row, Series

if TYPE_CHECKING:
    from collections.abc import Mapping

NAMES = (FLOOR, EXECNET, FARWIRE)


def number(value: float) -> str:
    """Three significant digits, no exponent."""
    size = abs(value)
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def _figures(series: Mapping[str, Series]) -> dict[str, str]:
    return {name: number(series[name].median) if name in series else "-" for name in NAMES}


def as_markdown(about: Mapping[str, str], rows: Mapping[str, list[Row]], bench: Bench) -> str:
    """Ready to be included in a page."""
    lines = [
        f"Made on {about['date']} by `{about['command']}`: {about['python']}, {about['kernel']}, {about['machine']};",
        (
            f"{about['libraries']}; {about['rounds']} rounds, contenders in turn, medians; load {about['load']};"
            f" {about['seconds']} s in all."
        ),
        "CPU is that of both ends, beside the time where both count. A ratio is the median of the ratios within each round.",
    ]
    if bench.quick:
        lines.append("**A quick run with small sizes: it shows that everything runs, not how fast.**")
    for name, table in rows.items():
        lines += ["", f"## {name}", "", "| what | unit | floor | execnet | farwire | CPU: floor / execnet / farwire "]
        lines[-1] += "| farwire to floor | better than execnet | targets | met |"
        lines.append("| --- " + "| ---: " * 7 + "| --- | --- |")
        lines += [_line(row) for row in table]
        notes = [f"* {row.what}: {'; '.join(row.notes)}" for row in table if row.notes]
        lines += ["", *notes] if notes else []
    checks = [check for table in rows.values() for row in table for check in row.checks]
    met, missed = sum(c.met is True for c in checks), sum(c.met is False for c in checks)
    lines += ["", f"Targets: {met} met, {missed} missed, {len(checks) - met - missed} not measured."]
    if bench.failures:
        lines += ["", "Failures:", "", *(f"* {' '.join(text.split())}" for text in bench.failures)]
    return "\n".join(lines) + "\n"


def _ratio(wall: float | None, cpu: float | None, digits: int) -> str:
    if not wall:
        return ""
    return f"{wall:.{digits}f}x" + (f" (CPU {cpu:.{digits}f}x)" if cpu else "")


def _line(row: Row) -> str:
    figures, cpu = _figures(row.figures), _figures(row.cpu)
    cost, gain = row.cost_to(FLOOR), row.gain_on(EXECNET)
    cpu_cost, cpu_of_execnet = row.cpu_cost_to(FLOOR), row.cpu_cost_to(EXECNET)
    targets = []
    for check in row.checks:
        mark = "" if check.met is None else (" ✓" if check.met else f" ✗ ({number(check.value or 0)})")
        targets.append(check.text + mark)
    cells = [
        row.what,
        row.unit,
        *(figures[name] for name in NAMES),
        " / ".join(cpu[name] for name in NAMES) if row.cpu else "",
        _ratio(cost, cpu_cost, 2),
        _ratio(gain, 1 / cpu_of_execnet if cpu_of_execnet else None, 1),
        "; ".join(targets),
        row.verdict,
    ]
    return "| " + " | ".join(cells) + " |"


def as_json(about: Mapping[str, str], rows: Mapping[str, list[Row]], bench: Bench) -> dict[str, Any]:
    """Everything, by workload and row."""

    def values(series: Mapping[str, Series]) -> dict[str, dict[int, float]]:
        return {name: one.values for name, one in series.items()}

    return {
        "about": dict(about),
        "failures": bench.failures,
        "rows": [
            {
                "workload": name,
                "what": row.what,
                "unit": row.unit,
                "figures": values(row.figures),
                "cpu": values(row.cpu),
                "to_floor": row.cost_to(FLOOR),
                "better_than_execnet": row.gain_on(EXECNET),
                "checks": [{"text": c.text, "value": c.value, "met": c.met} for c in row.checks],
                "notes": row.notes,
            }
            for name, table in rows.items()
            for row in table
        ],
    }
