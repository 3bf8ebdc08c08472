"""The demo: prune a real sentence encoder on real text, and measure what is left of it."""

from stat_prune.demo.course import run_demo
from stat_prune.demo.report import DemoReport

__all__ = ["DemoReport", "run_demo"]
