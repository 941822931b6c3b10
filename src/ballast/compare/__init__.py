"""A matrix of objectives, learning rates and seeds: run, resumed, summed up; importing it imports no torch."""

from ballast.compare.checks import COMPARE_CHECKS
from ballast.compare.cluster import RayOptions, ray_options
from ballast.compare.next_steps import next_steps
from ballast.compare.plan import Part, Plan
from ballast.compare.run import load_plan, run_compare, write_summary
from ballast.compare.summary import summarise
from ballast.compare.view import markdown, show

__all__ = [
    "COMPARE_CHECKS",
    "Part",
    "Plan",
    "RayOptions",
    "load_plan",
    "markdown",
    "next_steps",
    "ray_options",
    "run_compare",
    "show",
    "summarise",
    "write_summary",
]
